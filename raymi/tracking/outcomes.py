"""Paired comparison of logged models, from the artifacts of their evaluations."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow.lib import ArrowException
from torch import Tensor

from raymi.evaluation.outcome_store import read_export
from raymi.evaluation.protocol import as_metric, threat_name
from raymi.evaluation.summary import robust_samples
from raymi.selection.candidate import Candidate
from raymi.statistics import PairedComparison, compare_paired

_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OSError, ArrowException)
"""Errors of unreadable artifacts."""


class _Outcomes(NamedTuple):
    """Outcomes of an attack.

    Attributes:
        samples: checksums of the images and of their positions in the set.
        right: whether each sample is classified correctly under the attack, (N,) bool.
    """

    samples: tuple[str, str]
    right: Tensor


class PairedOutcomes:
    """Outcomes of candidates under an attack, fetched once from MLflow.

    Args:
        client: of the store.
        metric: name of the attack in metrics.
    """

    def __init__(self, client: Any, metric: str) -> None:
        self.client, self.metric = client, metric
        self._cache: dict[str, _Outcomes | None] = {}

    def compare(self, one: Candidate, other: Candidate) -> PairedComparison | None:
        """Returns McNemar's test; None unless MLflow has outcomes of both on the same samples."""
        first, second = self._outcomes(one), self._outcomes(other)
        if first is None or second is None or first.samples != second.samples:
            return None
        return compare_paired(first.right, second.right)

    def _outcomes(self, one: Candidate) -> _Outcomes | None:
        if one.model_id not in self._cache:
            self._cache[one.model_id] = self._fetch(one)
        return self._cache[one.model_id]

    def _fetch(self, one: Candidate) -> _Outcomes | None:
        if one.run_id is None or not one.evaluations or one.protocol.of_training:
            return None
        for folder in self.client.list_artifacts(one.run_id, "evaluations"):
            if not any(f"-{key}" in folder.path for key in one.evaluations):
                continue
            files = self.client.list_artifacts(one.run_id, folder.path)
            if {Path(file.path).name for file in files} >= {"report.json", "outcomes.parquet"}:
                with tempfile.TemporaryDirectory() as target:
                    path = self.client.download_artifacts(one.run_id, folder.path, target)
                    try:
                        outcomes = self._read(Path(path), one)
                    except _DAMAGED:
                        continue
                if outcomes is not None:
                    return outcomes
        return None

    def _read(self, folder: Path, one: Candidate) -> _Outcomes | None:
        """Returns the outcomes of an evaluation if the candidate's accuracy is from it."""
        report = json.loads((folder / "report.json").read_text())
        protocol, num = report["question"], report["num"]
        threat = threat_name(protocol["threat"]["norm"], protocol["threat"]["eps"])
        if (threat, num) != (one.protocol.threat, one.protocol.num):
            return None
        if not protocol["images"].startswith(one.protocol.digest):
            return None
        for result in report["results"]:
            if as_metric(result["name"]) == self.metric:
                steps = read_export(folder / "outcomes.parquet")
                right = robust_samples(steps, result["name"], num)
                if int(right.sum()) == round(one.numbers[self.metric].accuracy * num):
                    return _Outcomes((protocol["images"], protocol["places"]), right)
        return None
