"""Reports of classifiers, differences between them, and transfer matrices."""

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
    """Results of one classifier.

    Args:
        name: of the classifier.
        data: name of the images.
        num: number of images, N.
        protocol: everything that outcomes depend on, see `protocol_of`.
        attacks: settings of the reported attacks by name.
        folder: of the outcome store.
        results: clean accuracy first.
        findings: of all checks, suspicious or not.
        robust: (N,) bool by result, the samples that are right and not broken.
    """

    name: str
    data: str
    num: int
    protocol: Mapping[str, Any]
    attacks: Mapping[str, Any]
    folder: Path
    results: tuple[Robustness, ...]
    findings: tuple[Finding, ...]
    robust: Mapping[str, Tensor]

    @property
    def suspicions(self) -> tuple[Finding, ...]:
        """Findings that are signs of false robustness."""
        return tuple(finding for finding in self.findings if finding.suspicious)

    def as_json(self) -> dict[str, Any]:
        """Returns the report in JSON's types; accuracies are fractions."""
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
    """Comparison of two classifiers under one attack on the same samples."""

    attack: str
    first: str
    second: str
    pairs: PairedComparison

    def as_json(self) -> dict[str, Any]:
        """Returns JSON's types; `difference` is the first's accuracy minus the second's."""
        return {
            "attack": self.attack,
            "first": self.first,
            "second": self.second,
            **asdict(self.pairs),
        }


def differences(reports: Sequence[Report]) -> Iterator[Difference]:
    """Yields the difference of each pair of classifiers under each common attack, without details.

    Args:
        reports: on the same samples.
    """
    for first, second in combinations(reports, 2):
        details = {result.name for result in first.results if result.detail}
        for name in first.robust:
            if name in second.robust and name not in details:
                pairs = compare_paired(first.robust[name], second.robust[name])
                yield Difference(name, first.name, second.name, pairs)


@dataclass(frozen=True)
class TransferMatrix:
    """Accuracies of targets (columns) on samples that surrogates made (rows).

    A surrogate that is its own target has its white-box accuracy; None: the attack cannot run on
    the target.

    Args:
        attack: name.
        targets: names.
        clean: of each target.
        surrogates: of each target, by the surrogate's name.
        white_box: of each target, under the attack on itself.
    """

    attack: str
    targets: tuple[str, ...]
    clean: tuple[Robustness | None, ...]
    surrogates: Mapping[str, tuple[Robustness | None, ...]]
    white_box: tuple[Robustness | None, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns JSON's types; accuracies are fractions by the targets' names."""

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
    """Returns the transfer matrix of an attack.

    Args:
        reports: of the targets.
        attack: name.
        surrogates: name of the transfer result in the reports, by the surrogate's name.
    """
    by_name = [{result.name: result for result in report.results} for report in reports]

    def row(name: str) -> tuple[Robustness | None, ...]:
        return tuple(results.get(name) for results in by_name)

    def of_surrogate(surrogate: str, result: str) -> tuple[Robustness | None, ...]:
        pairs = zip(reports, by_name, strict=True)
        return tuple(r.get(attack if report.name == surrogate else result) for report, r in pairs)

    return TransferMatrix(
        attack,
        tuple(report.name for report in reports),
        clean=row(CLEAN),
        surrogates={name: of_surrogate(name, result) for name, result in surrogates.items()},
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
        "detail": result.detail,
        "note": result.note,
        "attacks": [asdict(count) for count in result.attacks],
    }
