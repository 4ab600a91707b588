"""Which samples a logged model withstood, from the artifacts of its evaluation: for comparisons in
pairs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow.lib import ArrowException
from torch import Tensor

from raymi.evaluation.outcome_store import read_export
from raymi.evaluation.protocol import threat_name
from raymi.evaluation.summary import robust_samples
from raymi.selection.candidate import Candidate
from raymi.statistics import PairedComparison, compare_paired
from raymi.tracking.metric_names import as_metric


class _Withstood(NamedTuple):
    """The samples, by the checksums of images and places in their set, and which of them a model
    classified right under the attack, (N,) bool."""

    samples: tuple[str, str]
    right: Tensor


class Outcomes:
    """Outcomes of candidates under an attack, each fetched once.

    Args: client; metric, the name of the attack in metrics.
    """

    def __init__(self, client: Any, metric: str) -> None:
        self.client, self.metric = client, metric
        self._known: dict[str, _Withstood | None] = {}

    def compare(self, one: Candidate, other: Candidate) -> PairedComparison | None:
        """McNemar's test on the samples of both; None where MLflow does not have the outcomes of
        both, on the same samples."""
        first, second = self._of(one), self._of(other)
        if first is None or second is None or first.samples != second.samples:
            return None
        return compare_paired(first.right, second.right)

    def _of(self, one: Candidate) -> _Withstood | None:
        if one.model_id not in self._known:
            self._known[one.model_id] = self._fetch(one)
        return self._known[one.model_id]

    def _fetch(self, one: Candidate) -> _Withstood | None:
        if one.run_id is None or not one.evaluations or one.protocol.of_training:
            return None
        for folder in self.client.list_artifacts(one.run_id, "evaluations"):
            if not any(f"-{key}" in folder.path for key in one.evaluations):
                continue
            files = self.client.list_artifacts(one.run_id, folder.path)
            if {Path(file.path).name for file in files} >= {"report.json", "outcomes.parquet"}:
                with tempfile.TemporaryDirectory() as place:
                    path = self.client.download_artifacts(one.run_id, folder.path, place)
                    found = self._read(Path(path), one)
                if found is not None:
                    return found
        return None

    def _read(self, folder: Path, one: Candidate) -> _Withstood | None:
        """What an evaluation recorded, if it is the one that the candidate's number is from, and
        can be read."""
        try:
            return self._recorded(folder, one)
        except (KeyError, TypeError, ValueError, AttributeError, OSError, ArrowException):
            return None

    def _recorded(self, folder: Path, one: Candidate) -> _Withstood | None:
        report = json.loads((folder / "report.json").read_text())
        protocol = report["question"]
        threat = threat_name(protocol["threat"]["norm"], protocol["threat"]["eps"])
        asked = (protocol["images"].startswith(one.protocol.digest), threat, report["num"])
        if asked != (True, one.protocol.threat, one.protocol.num):
            return None
        for result in report["results"]:
            if as_metric(result["name"]) != self.metric:
                continue
            steps = read_export(folder / "outcomes.parquet")
            right = robust_samples(steps, result["name"], report["num"])
            if int(right.sum()) == round(one.numbers[self.metric].accuracy * report["num"]):
                return _Withstood((protocol["images"], protocol["places"]), right)
        return None
