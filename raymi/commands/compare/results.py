"""The numbers of a paired comparison: results of runs, means with standard errors, the table.

Paired: runs of the same seed share data order, attack starts and initial weights, so the difference
of two arms is taken seed by seed before it is averaged. Accuracies are fractions; the table shows
percent and percentage points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raymi.formatting import table_cell
from raymi.runs.record import RunRecord
from raymi.statistics import Mean, mean_of

MEASURES = ("clean", "robust", "val")
"""Clean and robust accuracy on the test set, robust accuracy on the validation split; all of the
best epoch on validation."""


@dataclass(frozen=True)
class RunResult:
    """How the run of one arm and seed ended.

    clean, robust, val: accuracies, see `MEASURES`; model, epoch: whose they are.
    attack_steps: PGD steps of `robust`. minutes: time in all sessions.
    step: where the losses ceased to be finite. reason: of a failure.
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
    """One arm: means over its finished runs, and of its differences to the reference arm.

    means, differences: for each of `MEASURES`, None where no seed has it; differences are over the
        seeds that both arms finished, and empty for the reference itself.
    """

    arm: str
    num: int
    diverged: int
    failed: int
    means: Mapping[str, Mean | None]
    differences: Mapping[str, Mean | None]


def finished_result(arm: str, seed: int, events: Sequence[Mapping[str, Any]]) -> RunResult | None:
    """The result of a run from its journal; None where it has not finished.

    An event that is there twice, as after a crash, counts once. Of averaged and plain weights it is
    the model that the run chose, by robust validation accuracy.
    """
    record = RunRecord(events)
    chosen = record.evaluations.get(record.chosen)
    if not record.finished or chosen is None:
        return None
    which, epoch = chosen["which"], chosen["of_epoch"]
    key = "averaged/robust_acc" if which.endswith("-averaged") else "robust_acc"
    validated = {
        e["epoch"]: e["val"].get(key) for e in record.of_kind("epoch") if e["phase"] == "classifier"
    }
    return RunResult(
        arm,
        seed,
        "finished",
        clean=chosen["clean"],
        robust=chosen["robust"],
        val=validated.get(epoch),
        model=which,
        epoch=epoch,
        attack_steps=chosen["attack"]["steps"],
        minutes=minutes_in_sessions(events),
    )


def minutes_in_sessions(events: Iterable[Mapping[str, Any]]) -> float:
    """Returns the minutes that a run took, without the time between a stop and the next start.

    A clock that jumps back between two events adds nothing.
    """
    seconds, last = 0.0, None
    for event in events:
        if last is not None and event["kind"] != "start":
            seconds += max(0.0, event["time"] - last)
        last = event["time"]
    return seconds / 60


def summarise(results: Sequence[RunResult], arms: Sequence[str]) -> list[ArmSummary]:
    """One summary for each arm, in order; the first arm is the reference."""
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
    """Mean over the seeds that both have of own minus reference."""
    pairs = [
        (getattr(own[seed], measure), getattr(reference[seed], measure))
        for seed in own
        if seed in reference
    ]
    return mean_of([a - b for a, b in pairs if a is not None and b is not None])


def table(summaries: Sequence[ArmSummary], attack: str) -> list[tuple[str, ...]]:
    """The summaries as rows of text, the first one the header.

    Args: attack, the name of the final attack, such as "PGD-40".
    """
    named, reference = ("clean", attack, "val robust"), summaries[0].arm
    percent, points = (f"{name} %" for name in named), (f"{name} - {reference}" for name in named)
    header = ("arm", "n", *percent, *points)
    return [header, *map(_row, summaries)]


def _row(summary: ArmSummary) -> tuple[str, ...]:
    means = (_text(summary.means[m]) for m in MEASURES)
    if not summary.differences:
        return (summary.arm, _count(summary), *means, *("-" for _ in MEASURES))
    differences = (_text(summary.differences[m], signed=True) for m in MEASURES)
    return (summary.arm, _count(summary), *means, *differences)


def _count(summary: ArmSummary) -> str:
    other = {"diverged": summary.diverged, "failed": summary.failed}
    notes = [f"{num} {what}" for what, num in other.items() if num]
    return f"{summary.num} ({', '.join(notes)})" if notes else str(summary.num)


def _text(mean: Mean | None, *, signed: bool = False) -> str:
    if mean is None:
        return "n/a"
    percent = round(100 * mean.mean, 2) + 0.0  # no -0.00
    value = f"{percent:+.2f}" if signed else f"{percent:.2f}"
    return f"{value} ± {'n/a' if mean.error is None else f'{100 * mean.error:.2f}'}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table in Markdown, the first one its header."""
    lines = ["| " + " | ".join(map(table_cell, row)) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines) + "\n"
