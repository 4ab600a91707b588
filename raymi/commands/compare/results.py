"""Results of the runs of a comparison, means and paired differences over seeds, and the table.

Runs with the same seed share data order, attack starts and initial weights, so the difference of
two arms is taken seed by seed before it is averaged. Accuracies are fractions; the table shows
percent and percentage points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raymi.formatting import mean_text
from raymi.runs.record import RunRecord
from raymi.statistics import Mean, mean_of

MEASURES = ("clean", "robust", "val")
"""Clean and robust accuracy on test, and robust accuracy on validation, of the chosen model."""


@dataclass(frozen=True)
class RunResult:
    """Result of the run of one arm and seed.

    Attributes:
        arm: variant of the recipe.
        seed: of the run.
        status: of the run.
        clean: accuracy on test images, a fraction, as are `robust` and `val`.
        robust: accuracy on test images under the attack.
        val: robust accuracy on validation images.
        model: name of the model that was measured.
        epoch: of that model.
        attack_steps: PGD steps of `robust`.
        minutes: duration of all sessions.
        step: first step with a loss that is not finite.
        reason: of a failure.
    """

    arm: str
    seed: int
    status: Literal["finished", "diverged", "failed"]
    clean: float | None = None
    robust: float | None = None
    val: float | None = None
    model: str | None = None
    epoch: int | None = None
    attack_steps: int | None = None
    minutes: float | None = None
    step: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ArmSummary:
    """Means over the finished runs of an arm, and over its differences to the reference arm.

    Attributes:
        arm: variant of the recipe.
        num: number of finished runs.
        diverged: number of runs whose losses stopped being finite.
        failed: number of failed runs.
        means: of each of `MEASURES`; None without any value.
        differences: the same, over the seeds that both arms finished; empty for the reference.
    """

    arm: str
    num: int
    diverged: int
    failed: int
    means: Mapping[str, Mean | None]
    differences: Mapping[str, Mean | None]


def finished_result(arm: str, seed: int, record: RunRecord) -> RunResult | None:
    """Returns the result of a run, of its chosen model; None before the run has finished."""
    if not record.is_evaluated:
        return None
    which = record.chosen
    chosen = record.evaluations[which]
    return RunResult(
        arm,
        seed,
        "finished",
        clean=chosen["clean"],
        robust=chosen["robust"],
        val=record.validation(which, chosen["of_epoch"]).get("robust_acc"),
        model=which,
        epoch=chosen["of_epoch"],
        attack_steps=chosen["attack"]["steps"],
        minutes=record.minutes,
    )


def summarise(results: Sequence[RunResult], arms: Sequence[str]) -> list[ArmSummary]:
    """Returns a summary of each arm, in order; the first arm is the reference."""
    summaries = []
    reference = _finished(results, arms[0])
    for arm in arms:
        own = _finished(results, arm)
        status = [result.status for result in results if result.arm == arm]
        summaries.append(
            ArmSummary(
                arm,
                len(own),
                status.count("diverged"),
                status.count("failed"),
                {m: mean_of(_values(own.values(), m)) for m in MEASURES},
                {} if arm == arms[0] else {m: _paired(own, reference, m) for m in MEASURES},
            )
        )
    return summaries


def _finished(results: Sequence[RunResult], arm: str) -> dict[int, RunResult]:
    return {r.seed: r for r in results if r.arm == arm and r.status == "finished"}


def _values(results: Iterable[RunResult], measure: str) -> list[float]:
    values = (getattr(result, measure) for result in results)
    return [value for value in values if value is not None]


def _paired(
    own: Mapping[int, RunResult], reference: Mapping[int, RunResult], measure: str
) -> Mean | None:
    """Returns the mean over common seeds of own minus reference."""
    pairs = [
        (getattr(own[seed], measure), getattr(reference[seed], measure))
        for seed in own
        if seed in reference
    ]
    return mean_of([a - b for a, b in pairs if a is not None and b is not None])


def table(summaries: Sequence[ArmSummary], attack: str) -> list[tuple[str, ...]]:
    """Returns the summaries as rows of text; the first row is the header.

    Args:
        summaries: of each arm.
        attack: name of the final attack, such as "PGD-40".
    """
    named, reference = ("clean", attack, "val robust"), summaries[0].arm
    percent, points = (f"{name} %" for name in named), (f"{name} - {reference}" for name in named)
    header = ("arm", "n", *percent, *points)
    return [header, *map(_row, summaries)]


def _row(summary: ArmSummary) -> tuple[str, ...]:
    means = (mean_text(summary.means[m], decimals=2, unit="") for m in MEASURES)
    differences = (
        mean_text(summary.differences.get(m), decimals=2, signed=True, unit="") for m in MEASURES
    )
    return (summary.arm, _count(summary), *means, *differences)


def _count(summary: ArmSummary) -> str:
    other = {"diverged": summary.diverged, "failed": summary.failed}
    notes = [f"{num} {what}" for what, num in other.items() if num]
    return f"{summary.num} ({', '.join(notes)})" if notes else str(summary.num)
