"""What a sweep found: each trial over its seeds, and in pairs with the best one.

Runs with the same seed share data order, attack starts and initial weights, so the difference of
two trials is taken seed by seed before it is averaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raymi.comparison.results import Mean, mean_of
from raymi.sweeps.study import Trial
from raymi.sweeps.sweep import Measured, Sweep


@dataclass(frozen=True)
class TrialResult:
    """A trial, and what it reached on validation, as means over the seeds that were validated; None
    where none was.

    epochs: that all of these seeds have made.
    difference: of robust accuracy to the best trial's, over the seeds that both have; None for that
        one itself, and where there is one seed only or none in common.
    """

    trial: Trial
    epochs: int
    robust: Mean | None
    clean: Mean | None
    difference: Mean | None = None


def results(sweep: Sweep, trials: Iterable[Trial]) -> list[TrialResult]:
    """All trials: those that came to their end first, by robust accuracy."""
    reached = {trial.number: _reached(sweep, trial.number) for trial in trials}
    ranked = sorted(
        trials,
        key=lambda trial: (trial.state == "finished", _robust(reached[trial.number])),
        reverse=True,
    )
    if not ranked:
        return []
    best = reached[ranked[0].number]
    found = []
    for trial in ranked:
        own = reached[trial.number]
        pairs = [own[seed].robust - best[seed].robust for seed in own if seed in best]
        compared = trial is not ranked[0] and len(sweep.seeds) > 1
        found.append(
            TrialResult(
                trial,
                epochs=min((one.epoch for one in own.values()), default=0),
                robust=mean_of([one.robust for one in own.values()]),
                clean=mean_of([one.clean for one in own.values()]),
                difference=mean_of(pairs) if compared else None,
            )
        )
    return found


def _reached(sweep: Sweep, number: int) -> dict[int, Measured]:
    """By seed, the last that was measured."""
    measured = {run.seed: sweep.measured(run) for run in sweep.runs_of(number)}
    return {seed: one[-1] for seed, one in measured.items() if one}


def _robust(reached: dict[int, Measured]) -> float:
    mean = mean_of([one.robust for one in reached.values()])
    return -1.0 if mean is None else mean.mean
