"""One search in this process, trial after trial, for as many trial-epochs as it is given.

The draws, the decisions and the trainings are those of `raymi.tune`, without Ray.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raymi.errors import StorageError
from raymi.sweeps.space import Values
from raymi.sweeps.study import Study, Trial
from raymi.sweeps.sweep import Definition, Measured, Run, Sweep, reached
from raymi.sweeps.trial import in_this_process, run_trial

How = Literal["finished", "stopped", "cut", "failed"]


@dataclass(frozen=True)
class Trained:
    """A trial of a search.

    robust: highest robust accuracy on validation by each epoch that it came to.
    epochs: that were spent on it; one in which it failed counts.
    ended: finished, at its last epoch; stopped, as others were ahead; cut, as the search had spent
        all that it was given; failed.
    """

    values: Values
    epochs: int
    ended: How
    robust: tuple[float, ...]


class _Over(BaseException):
    """A trial is not to go on; says how it ended. No error, which a run would be told to have
    failed of."""

    def __init__(self, ended: How) -> None:
        super().__init__(ended)
        self.ended = ended


def search(
    definition: Definition, budget: int, training_seed: int, device: torch.device
) -> list[Trained]:
    """Searches until the budget is spent.

    Args: definition, of a sweep of one seed, which decides what is drawn, and whose trials are of
        one phase and validated after each epoch; budget, in trial-epochs; training_seed, of all
        trials.
    Raises: StorageError where nothing can be written.
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
    """Trains the next trial, for `left` epochs at most."""
    trial = study.ask()
    number, run = trial.number, Run(trial.number, seed)
    last = sweep.config_of(trial.values, run).optim.epochs
    measured: list[Measured] = []

    def tell(metrics: Mapping[str, Any]) -> None:
        val = {key.removeprefix("val/"): value for key, value in metrics.items()}
        measured.append(Measured.of_epoch(metrics["epoch"], val))
        now = reached(measured)[-1]
        if study.report(number, now.epoch, now.robust) and now.epoch < last:
            study.stop(number)
            raise _Over("stopped")
        if now.epoch == left < last:
            raise _Over("cut")

    try:
        ended = run_trial(sweep, run, trial.values, in_this_process(device, sweep.stop_file, tell))
    except _Over as over:
        return _trained(trial, over.ended, measured)
    if ended.how == "failed":
        study.fail(number, ended.reason or "")
        return _trained(trial, "failed", measured)
    if ended.how == "blocked":
        raise StorageError(ended.reason)
    study.finish(number, [reached(measured)[-1].robust])
    return _trained(trial, "finished", measured)


def _trained(trial: Trial, ended: How, measured: Sequence[Measured]) -> Trained:
    robust = tuple(one.robust for one in reached(measured))
    return Trained(trial.values, len(robust) + (ended == "failed"), ended, robust)
