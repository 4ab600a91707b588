"""Saved accuracies of a run's chosen model, by evaluation protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymi.config import Config
from raymi.evaluation.protocol import as_metric, threat_name
from raymi.losses.registry import loss_titles
from raymi.mi.forms.registry import names_method, title_of
from raymi.mi.settings import form_defaults
from raymi.reporting.history import History
from raymi.runs.json_files import read_json_or_none
from raymi.runs.json_types import SavedReport
from raymi.selection.candidate import CLEAN, Protocol
from raymi.statistics import Number, with_interval

_DIGITS = 32
"""Digits of a checksum that MLflow keeps, by which protocols on disk and in MLflow are equal."""


@dataclass(frozen=True)
class ProtocolAccuracies:
    """Accuracies of a model under one protocol.

    Attributes:
        protocol: images and threat.
        numbers: by the name of the attack; "clean" is among them.
        doubts: signs of false robustness.
    """

    protocol: Protocol
    numbers: Mapping[str, Number]
    doubts: str = ""


def method_name(config: Config) -> str:
    """Returns the method of a run as papers name it, such as `NAMID_T (bounded)`."""
    mi, base = config.mi, config.loss.base
    if config.attack.steps == 0:
        return "standard" if not mi.enabled else f"standard + {mi.form}"
    adversarial, namid = loss_titles(base)
    if not mi.enabled:
        control = " + unused clean forward" if config.loss.batchnorm == "mix" else ""
        return adversarial + control
    defaults = form_defaults(mi.form)
    ablated = [
        f"no {kind} MI"
        for kind in ("natural", "adversarial")
        if not getattr(mi, kind) and defaults.get(kind, True)
    ]
    if title := title_of(mi.form):
        alone = base == "at" and names_method(mi.form)
        return ", ".join([title if alone else f"{adversarial} + {title}", *ablated])
    parts = [mi.form, *(["staged"] if mi.schedule == "staged" and mi.form == "bounded" else [])]
    return f"{namid} ({', '.join([*parts, *ablated])})"


def training_accuracies(history: History) -> list[ProtocolAccuracies]:
    """Returns the test accuracies of the chosen model, measured at the end of its training."""
    event = history.evaluations.get(history.chosen)
    data = history.start.get("data", {})
    digest = data.get("digests", {}).get("test")
    if event is None or digest is None:
        return []
    attack = event["attack"]
    protocol = Protocol(
        f"{data['name']}-test",
        digest[:_DIGITS],
        event["num"],
        threat_name(attack["norm"], attack["eps"]),
        of_training=True,
    )
    alpha = history.config.evaluation.alpha
    name = f"pgd-{attack['steps']}-of-training" + ("" if alpha is None else f"-alpha-{alpha}")
    numbers = {
        CLEAN: with_interval(event["clean"], event["num"]),
        name: with_interval(event["robust"], event["num"]),
    }
    return [ProtocolAccuracies(protocol, numbers)]


def evaluation_accuracies(folders: Iterable[Path], digest: str) -> list[ProtocolAccuracies]:
    """Reads the accuracies of a classifier from reports of `raymi.evaluate`, the newest first.

    Args:
        folders: of outcome stores.
        digest: of the classifier, see `ModelSource`.
    """
    paths = [path for folder in folders for path in folder.glob("*/report.json")]
    found = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        consequence = "it is left out; run the command of the evaluation again"
        saved = read_json_or_none(path, SavedReport, consequence)
        if saved is not None and saved.protocol.model == digest:
            found.append(_of_report(saved))
    return merge_accuracies(found)


def merge_accuracies(parts: Sequence[ProtocolAccuracies]) -> list[ProtocolAccuracies]:
    """Merges accuracies of equal protocols; the first number of each attack counts."""
    merged: dict[Protocol, ProtocolAccuracies] = {}
    for part in parts:
        first = merged.get(part.protocol)
        if first is None:
            merged[part.protocol] = part
            continue
        doubts = "; ".join(dict.fromkeys(filter(None, (first.doubts, part.doubts))))
        numbers = {**part.numbers, **first.numbers}
        merged[part.protocol] = ProtocolAccuracies(part.protocol, numbers, doubts)
    return list(merged.values())


def _of_report(saved: SavedReport) -> ProtocolAccuracies:
    protocol = Protocol(
        saved.data,
        saved.protocol.images[:_DIGITS],
        saved.num,
        threat_name(saved.protocol.threat.norm, saved.protocol.threat.eps),
        of_training=False,
    )
    numbers = {
        as_metric(one.name): Number(one.accuracy, one.low95, one.high95)  # as named in MLflow
        for one in saved.results
        if not one.detail
    }
    doubts = [one.check for one in saved.false_robustness if one.suspicious]
    return ProtocolAccuracies(protocol, numbers, "; ".join(doubts))
