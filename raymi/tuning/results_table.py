"""The trials of a sweep as a table: what each drew, and what it reached, over its seeds, and in
pairs with the best one.

Runs with the same seed share data order, attack starts and initial weights, so the difference of
two trials is taken seed by seed before it is averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from raymi.statistics import Mean, mean_of
from raymi.tuning.space import Values
from raymi.tuning.study import State, Trial
from raymi.tuning.sweep_folder import Measurement, Sweep, TrialRun


@dataclass(frozen=True)
class Finalist:
    """A trial that was attacked harder on validation images: accuracies as fractions, means over
    its seeds; `run`, that of its seeds which is the best. `autoattack`: None where the trial did
    not come so far."""

    number: int
    run: TrialRun
    pgd: float
    autoattack: float | None = None


@dataclass(frozen=True)
class Row:
    """A trial: number, state, what it drew, and why it failed.

    by_seed: what it has reached by now with each seed whose run was validated.
    difference: of robust accuracy to the best trial's, over the seeds that both have; None for that
        one itself, and where the sweep has one seed or they have none in common.
    final: how it came out of the final, where it was in it.
    """

    number: int
    state: State
    values: Values
    reason: str | None = None
    by_seed: Mapping[int, Measurement] = field(default_factory=dict)
    difference: Mean | None = None
    final: Finalist | None = None

    @property
    def reached(self) -> Measurement | None:
        """The mean over the seeds, after as many epochs as all of them have made; None before any
        was validated."""
        if not self.by_seed:
            return None
        return Measurement(min(one.epoch for one in self.by_seed.values()), self.clean, self.robust)

    @property
    def clean(self) -> float:
        """Clean accuracy of a trial that was validated."""
        return fmean(one.clean for one in self.by_seed.values())

    @property
    def robust(self) -> float:
        """Robust accuracy of a trial that was validated."""
        return fmean(one.robust for one in self.by_seed.values())


@dataclass(frozen=True)
class Found:
    """What a sweep has found: the run that won, the finalists, the winner first, and the winner's
    accuracies on so many images of the test set by the name of the attack; nothing before it has
    come so far."""

    winner: TrialRun | None = None
    finalists: tuple[Finalist, ...] = ()
    test: Mapping[str, float] = field(default_factory=dict)
    num_test: int = 0


def trial_rows(
    sweep: Sweep, trials: Iterable[Trial], finalists: Sequence[Finalist] = ()
) -> list[Row]:
    """Trials with what their runs have reached by now: finalists first, in their order, then those
    that came to their end, then the others, each by robust accuracy."""
    finals = {one.number: one for one in finalists}
    rows = [
        Row(
            trial.number,
            trial.state,
            trial.values,
            trial.reason,
            _by_seed(sweep, trial.number),
            final=finals.get(trial.number),
        )
        for trial in trials
    ]
    order = list(finals)
    rows.sort(
        key=lambda row: (
            order.index(row.number) if row.number in finals else len(order),
            row.state != "finished",
            -row.robust if row.by_seed else 1.0,
        )
    )
    if len(sweep.seeds) == 1:
        return rows
    return rows[:1] + [replace(row, difference=_difference(row, rows[0])) for row in rows[1:]]


def _by_seed(sweep: Sweep, number: int) -> dict[int, Measurement]:
    measured = {run.seed: sweep.measured(run) for run in sweep.runs_of(number)}
    return {seed: one[-1] for seed, one in measured.items() if one}


def _difference(row: Row, best: Row) -> Mean | None:
    both = row.by_seed.keys() & best.by_seed.keys()
    return mean_of([row.by_seed[seed].robust - best.by_seed[seed].robust for seed in both])


def as_columns(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """A table of plain values.

    Returns: names of the columns, one for each parameter among them; a list for each trial, with
        None where it has no such value. `_error`: standard errors over the seeds, where any trial
        has several.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    header = ["trial", "state", *names, "epochs", "clean", "robust"]
    several = any(len(row.by_seed) > 1 for row in rows)
    judged = any(row.final for row in rows)
    if several:
        header += ["seeds", "robust_error", "difference", "difference_error"]
    if judged:
        header += ["pgd40", "autoattack"]
    lines = []
    for row in rows:
        line = [row.number, row.state, *(row.values.get(name) for name in names)]
        line += row.reached or (None, None, None)
        if several:
            robust = mean_of([one.robust for one in row.by_seed.values()])
            line += [len(row.by_seed), robust and robust.error]
            difference = row.difference
            line += [difference and difference.mean, difference and difference.error]
        if judged:
            line += [row.final and row.final.pgd, row.final and row.final.autoattack]
        lines.append([*line, row.reason])
    return [*header, "reason"], lines
