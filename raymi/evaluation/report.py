"""What an evaluation says of a classifier, and of two of them on the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from raymi.evaluation.blocks import CLEAN
from raymi.evaluation.finding import Finding
from raymi.evaluation.summary import Robustness
from raymi.statistics import PairedComparison, compare_paired


@dataclass(frozen=True)
class Report:
    """All that was found of one classifier.

    Args:
        name: of the classifier.
        data: the name of the images that it was measured on.
        num: how many these are, N.
        question: what all outcomes depend on, see `protocol_of`.
        attacks: by the names of the ensembles, the settings of their attacks.
        folder: of the ledger.
        results: clean accuracy first.
        findings: of each check what it found, suspicious or not.
        withstand: for each result which samples are classified right and withstand it, (N,) bool.
    """

    name: str
    data: str
    num: int
    protocol: Mapping[str, Any]
    attacks: Mapping[str, Any]
    folder: Path
    results: tuple[Robustness, ...]
    findings: tuple[Finding, ...]
    withstand: Mapping[str, Tensor]

    @property
    def suspicions(self) -> tuple[Finding, ...]:
        """What was found that is odd for a robust network."""
        return tuple(finding for finding in self.findings if finding.suspicious)

    def as_json(self) -> dict[str, Any]:
        """The whole report in JSON's types; accuracies are fractions."""
        return {
            "model": self.name,
            "data": self.data,
            "num": self.num,
            "question": dict(self.protocol),
            "attacks": dict(self.attacks),
            "folder": str(self.folder),
            "results": [_result(result) for result in self.results],
            "false_robustness": [asdict(finding) for finding in self.findings],
        }


@dataclass(frozen=True)
class Difference:
    """Two classifiers under the same attack on the same samples."""

    attack: str
    first: str
    second: str
    found: PairedComparison

    def as_json(self) -> dict[str, Any]:
        """In JSON's types; `difference` is the first's accuracy minus the second's."""
        return {
            "attack": self.attack,
            "first": self.first,
            "second": self.second,
            **asdict(self.found),
        }


def differences(reports: Sequence[Report]) -> Iterator[Difference]:
    """Each pair of classifiers under each attack that both were measured with.

    Args: reports on the same samples.
    """
    for first, second in combinations(reports, 2):
        for name in first.withstand:
            if name in second.withstand:
                found = compare_paired(first.withstand[name], second.withstand[name])
                yield Difference(name, first.name, second.name, found)


@dataclass(frozen=True)
class TransferMatrix:
    """Accuracies of targets, in columns, on images that were made on others, in rows.

    `clean`, `white_box` (by the attack on the target itself) and for each surrogate's name: one
    result for each target. Where a surrogate is its own target, it is the white box; None, where
    the attack cannot be made on the target.
    """

    attack: str
    targets: tuple[str, ...]
    clean: tuple[Robustness | None, ...]
    surrogates: Mapping[str, tuple[Robustness | None, ...]]
    white_box: tuple[Robustness | None, ...]

    def as_json(self) -> dict[str, Any]:
        """In JSON's types; accuracies are fractions, by the names of the targets."""

        def row(results: Sequence[Robustness | None]) -> dict[str, float | None]:
            pairs = zip(self.targets, results, strict=True)
            return {name: None if one is None else one.accuracy for name, one in pairs}

        return {
            "attack": self.attack,
            "clean": row(self.clean),
            "surrogates": {name: row(results) for name, results in self.surrogates.items()},
            "white_box": row(self.white_box),
        }


def transfer_matrix(
    reports: Sequence[Report], attack: str, surrogates: Mapping[str, str]
) -> TransferMatrix:
    """The matrix of an attack.

    Args: reports of the targets; attack, its name; surrogates, by their names those under which
        their samples are in the reports.
    """
    found = [{result.name: result for result in report.results} for report in reports]

    def row(name: str) -> tuple[Robustness | None, ...]:
        return tuple(results.get(name) for results in found)

    def of_surrogate(surrogate: str, made: str) -> tuple[Robustness | None, ...]:
        pairs = zip(reports, found, strict=True)
        return tuple(r.get(attack if report.name == surrogate else made) for report, r in pairs)

    return TransferMatrix(
        attack,
        tuple(report.name for report in reports),
        clean=row(CLEAN),
        surrogates={name: of_surrogate(name, made) for name, made in surrogates.items()},
        white_box=row(attack),
    )


def _result(result: Robustness) -> dict[str, Any]:
    low, high = result.interval
    return {
        "name": result.name,
        "accuracy": result.accuracy,
        "right": result.right,
        "num": result.num,
        "low95": low,
        "high95": high,
        "attacks": [asdict(count) for count in result.attacks],
    }
