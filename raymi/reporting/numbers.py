"""What was measured of a run's chosen model, question by question, wherever it was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymi.config import Config
from raymi.evaluation.protocol import threat_name
from raymi.reporting.history import History
from raymi.runs.kept_json import read_kept_or_none
from raymi.runs.records import KeptReport
from raymi.selection.candidate import CLEAN, Protocol
from raymi.statistics import Accuracy, with_interval

_DIGITS = 32
"""Of a checksum that are kept in MLflow: so questions there and here are the same."""


@dataclass(frozen=True)
class Entry:
    """What one question says of a run: accuracies by the name of the attack, "clean" among them,
    and signs of false robustness in words."""

    protocol: Protocol
    numbers: Mapping[str, Accuracy]
    doubts: str = ""


def method_name(config: Config) -> str:
    """What a run's method is called in papers, such as `NAMID_T (bounded)`."""
    mi, base = config.mi, config.loss.base
    if config.attack.steps == 0:
        return "standard" if not mi.enabled else f"standard + {mi.form}"
    adversarial = {"at": "AT", "trades": "TRADES", "mart": "MART"}[base]
    if not mi.enabled:
        control = " + unused clean forward" if config.loss.batchnorm == "mix" else ""
        return adversarial + control
    if mi.form == "random":
        return f"{adversarial} + random gradient"
    if mi.form == "wmim":
        return "WMIM" if base == "at" else f"{adversarial} + WMIM"
    letter = {"at": "", "trades": "_T", "mart": "_M"}[base]
    parts = [mi.form, *(["staged"] if mi.schedule == "staged" and mi.form == "bounded" else [])]
    parts += [f"no {kind} MI" for kind in ("natural", "adversarial") if not getattr(mi, kind)]
    return f"NAMID{letter} ({', '.join(parts)})"


def of_training(history: History) -> list[Entry]:
    """What a run measured of its chosen model at its end."""
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
    return [Entry(protocol, numbers)]


def of_evaluations(folders: Iterable[Path], digest: str) -> list[Entry]:
    """What `raymi.evaluate` found of a classifier, from the reports in its ledgers.

    Args: folders, of ledgers; digest of the classifier, see `ModelSource`.
    """
    paths = [path for folder in folders for path in folder.glob("*/report.json")]
    found = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        without = "it is left out, give the command of the evaluation again"
        kept = read_kept_or_none(path, KeptReport, without)
        if kept is not None and kept.protocol.model == digest:
            found.append(_of_report(kept))
    return merged(found)


def merged(entries: Sequence[Entry]) -> list[Entry]:
    """One entry for each question; of two numbers of the same attack, that of the first entry."""
    together: dict[Protocol, Entry] = {}
    for entry in entries:
        before = together.get(entry.protocol)
        if before is None:
            together[entry.protocol] = entry
            continue
        doubts = "; ".join(dict.fromkeys(filter(None, (before.doubts, entry.doubts))))
        numbers = {**entry.numbers, **before.numbers}
        together[entry.protocol] = Entry(entry.protocol, numbers, doubts)
    return list(together.values())


def _of_report(kept: KeptReport) -> Entry:
    asked = kept.protocol
    protocol = Protocol(
        kept.data,
        asked.images[:_DIGITS],
        kept.num,
        threat_name(asked.threat.norm, asked.threat.eps),
        of_training=False,
    )
    numbers = {
        # As it is in the names of metrics, so that what MLflow has of it is the same attack.
        re.sub(r"[^\w.\-]", "_", one.name, flags=re.ASCII): Accuracy(
            one.accuracy, one.low95, one.high95
        )
        for one in kept.results
    }
    doubts = [one.check for one in kept.false_robustness if one.suspicious]
    return Entry(protocol, numbers, "; ".join(doubts))
