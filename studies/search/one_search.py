"""A search in this process, trial after trial, until its budget of trial-epochs is spent.

Draws, decisions and training are the same as in `raymi.tune`, without Ray.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raymi.errors import StorageError
from raymi.tuning.run_trial import in_this_process, run_trial
from raymi.tuning.space import Values
from raymi.tuning.study import Study, Trial
from raymi.tuning.sweep_folder import Definition, Measurement, Sweep, TrialRun, reached

How = Literal["finished", "stopped", "cut", "failed"]


@dataclass(frozen=True)
class Trained:
    """Trial of a search.

    Attributes:
        values: the values that it drew.
        epochs: epochs spent on it, including one in which it failed.
        ended: finished (at its last epoch), stopped (others were ahead), cut (the budget was spent)
            or failed.
        robust: highest robust accuracy on validation up to each epoch.
    """

    values: Values
    epochs: int
    ended: How
    robust: tuple[float, ...]


class _Over(BaseException):
    """Ends a trial before its last epoch. Not an Exception, which would mark the run as failed."""

    def __init__(self, ended: How) -> None:
        super().__init__(ended)
        self.ended = ended


def search(
    definition: Definition, budget: int, training_seed: int, device: torch.device
) -> list[Trained]:
    """Searches until the budget is spent.

    Args:
        definition: sweep of one seed, which decides the draws; its trials have one phase and are
            validated after each epoch.
        budget: number of trial-epochs.
        training_seed: seed of all trials.
        device: where they train.

    Raises:
        StorageError: nothing can be written.
    """
    trials: list[Trained] = []
    with tempfile.TemporaryDirectory(prefix="raymi-search-") as folder:
        sweep = Sweep.begin(Path(folder) / "sweep", definition)
        study, left = sweep.study(), budget
        while left > 0:
            trials.append(_train(sweep, study, training_seed, left, device))
            left -= trials[-1].epochs
    return trials


def _train(sweep: Sweep, study: Study, seed: int, left: int, device: torch.device) -> Trained:
    """Trains the next trial for at most `left` epochs."""
    trial = study.ask()
    number, run = trial.number, TrialRun(trial.number, seed)
    last = sweep.config_of(trial.values, run).optim.epochs
    measured: list[Measurement] = []

    def on_epoch(metrics: Mapping[str, Any]) -> None:
        val = {key.removeprefix("val/"): value for key, value in metrics.items()}
        measured.append(Measurement.of_epoch(metrics["epoch"], val))
        now = reached(measured)[-1]
        if study.report(number, now.epoch, now.robust) and now.epoch < last:
            study.stop(number)
            raise _Over("stopped")
        if now.epoch == left < last:
            raise _Over("cut")

    try:
        ended = run_trial(
            sweep, run, trial.values, in_this_process(device, sweep.stop_file, on_epoch)
        )
    except _Over as over:
        return _trained(trial, over.ended, measured)
    if ended.how == "failed":
        study.fail(number, ended.reason or "")
        return _trained(trial, "failed", measured)
    if ended.how == "blocked":
        raise StorageError(ended.reason)
    study.finish(number, [reached(measured)[-1].robust])
    return _trained(trial, "finished", measured)


def _trained(trial: Trial, ended: How, measured: Sequence[Measurement]) -> Trained:
    robust = tuple(one.robust for one in reached(measured))
    return Trained(trial.values, len(robust) + (ended == "failed"), ended, robust)
