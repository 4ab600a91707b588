"""Table of a sweep's trials: drawn values, accuracies over the seeds, paired differences.

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
    """Trial of the final evaluation on validation images.

    Attributes:
        number: Number of the trial.
        run: Its best run.
        pgd: Accuracy under PGD-40, a mean over the seeds.
        autoattack: Accuracy under AutoAttack, likewise; None: PGD-40 ruled the trial out.
    """

    number: int
    run: TrialRun
    pgd: float
    autoattack: float | None = None


@dataclass(frozen=True)
class Row:
    """Row of the table.

    Attributes:
        number: Number of the trial.
        state: Its state.
        values: Drawn values by parameter.
        reason: Reason of a failure.
        by_seed: Best measurement so far by seed, of the seeds whose runs were validated.
        difference: Difference in robust accuracy to the best trial, over their common seeds; None
            for the best trial itself, with one seed and without common seeds.
        final: Result of the final evaluation, if the trial was in it.
    """

    number: int
    state: State
    values: Values
    reason: str | None = None
    by_seed: Mapping[int, Measurement] = field(default_factory=dict)
    difference: Mean | None = None
    final: Finalist | None = None

    @property
    def measurement(self) -> Measurement | None:
        """Mean over the seeds, with the lowest epoch of them; None before any was validated."""
        if not self.by_seed:
            return None
        return Measurement(min(one.epoch for one in self.by_seed.values()), self.clean, self.robust)

    @property
    def clean(self) -> float:
        """Mean clean accuracy of a validated trial."""
        return fmean(one.clean for one in self.by_seed.values())

    @property
    def robust(self) -> float:
        """Mean robust accuracy of a validated trial."""
        return fmean(one.robust for one in self.by_seed.values())


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep; empty until its final evaluation.

    Attributes:
        winner: The run that won.
        finalists: All finalists, the winner first.
        test: Accuracies of the winner on the test set, by attack.
        num_test: Number of test images.
    """

    winner: TrialRun | None = None
    finalists: tuple[Finalist, ...] = ()
    test: Mapping[str, float] = field(default_factory=dict)
    num_test: int = 0


def trial_rows(
    sweep: Sweep, trials: Iterable[Trial], finalists: Sequence[Finalist] = ()
) -> list[Row]:
    """Returns the rows of trials: finalists in their order, then finished trials, then the others.

    The trials after the finalists are sorted by robust accuracy.
    """
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
    measured = {run.seed: sweep.measurements(run) for run in sweep.runs_of(number)}
    return {seed: one[-1] for seed, one in measured.items() if one}


def _difference(row: Row, best: Row) -> Mean | None:
    both = row.by_seed.keys() & best.by_seed.keys()
    return mean_of([row.by_seed[seed].robust - best.by_seed[seed].robust for seed in both])


def as_columns(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Converts rows to a table of plain values.

    Returns:
        Names of the columns, with one for each parameter, and a list of values for each trial, with
        None for a missing one. `_error` columns are standard errors over the seeds.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    header = ["trial", "state", *names, "epochs", "clean", "robust"]
    several_seeds = any(len(row.by_seed) > 1 for row in rows)
    has_finalists = any(row.final for row in rows)
    if several_seeds:
        header += ["seeds", "robust_error", "difference", "difference_error"]
    if has_finalists:
        header += ["pgd40", "autoattack"]
    lines = []
    for row in rows:
        line = [row.number, row.state, *(row.values.get(name) for name in names)]
        line += row.measurement or (None, None, None)
        if several_seeds:
            robust = mean_of([one.robust for one in row.by_seed.values()])
            line += [len(row.by_seed), robust and robust.error]
            difference = row.difference
            line += [difference and difference.mean, difference and difference.error]
        if has_finalists:
            line += [row.final and row.final.pgd, row.final and row.final.autoattack]
        lines.append([*line, row.reason])
    return [*header, "reason"], lines
