"""The trials of a sweep as a table: what each drew, and what it reached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raymi.sweeps.space import Values
from raymi.sweeps.study import State, Trial
from raymi.sweeps.sweep import Measured, Sweep


@dataclass(frozen=True)
class Row:
    """A trial: number, state and what it drew; what it has reached, None before it was validated;
    why it failed."""

    number: int
    state: State
    values: Values
    reached: Measured | None
    reason: str | None

    @property
    def clean(self) -> float:
        """Clean accuracy of a trial that was validated."""
        assert self.reached is not None
        return self.reached.clean

    @property
    def robust(self) -> float:
        """Robust accuracy of a trial that was validated."""
        assert self.reached is not None
        return self.reached.robust


def trial_rows(sweep: Sweep, trials: Iterable[Trial]) -> list[Row]:
    """Trials with what their runs have reached by now."""
    rows = []
    for trial in trials:
        reached = sweep.measured(trial.number)
        last = reached[-1] if reached else None
        rows.append(Row(trial.number, trial.state, trial.values, last, trial.reason))
    return rows


def as_columns(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """A table of plain values.

    Returns: names of the columns, one for each parameter among them; a list for each trial, with
        None where it has no such value.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    header = ["trial", "state", *names, "epochs", "clean", "robust", "reason"]
    lines = [
        [
            row.number,
            row.state,
            *(row.values.get(name) for name in names),
            *(row.reached or (None, None, None)),
            row.reason,
        ]
        for row in rows
    ]
    return header, lines
