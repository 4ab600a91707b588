"""What an evaluation says of a classifier, and of two of them on the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from raymi.evaluation.blocks import CLEAN, Outcome, Step
from raymi.evaluation.checks import Finding
from raymi.evaluation.robustness import Robustness, withstood
from raymi.evaluation.statistics import PairedComparison, compare_paired
from raymi.evaluation.transfer import transfer_name


@dataclass(frozen=True)
class Report:
    """All that was found of one classifier.

    `name` of the classifier; `data`, what it was measured on, in words; `question`, see
    `question_of`; `attacks`, their settings by name; `folder` of the ledger; `results`, clean
    accuracy first; `findings`, signs of false robustness, or that there are none; `withstand`, for
    each result which samples are classified right and withstand it, (N,) bool.
    """

    name: str
    data: str
    question: Mapping[str, Any]
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
            "question": dict(self.question),
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


def which_withstood(
    outcomes: Sequence[tuple[Step, Outcome]], results: Sequence[Robustness], num: int
) -> dict[str, Tensor]:
    """For each result, clean accuracy too, which of the samples are right: (num,) bool."""
    return {result.name: withstood(outcomes, result.name, num) for result in results}


def transfer_matrix(
    reports: Sequence[Report], attack: str, surrogates: Sequence[str]
) -> list[tuple[str, list[Robustness]]]:
    """Rows of a transfer matrix: clean images, each surrogate, and last the attack on the target
    itself, which also stands where a surrogate is its own target; columns are the reports'
    classifiers.

    Args: reports of the targets; attack, its name; surrogates, their names.
    """
    rows = {CLEAN: CLEAN} | {name: transfer_name(attack, name) for name in surrogates}
    rows["itself (white box)"] = attack
    found = [{result.name: result for result in report.results} for report in reports]
    return [
        (label, [results.get(name, results[attack]) for results in found])
        for label, name in rows.items()
    ]


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
