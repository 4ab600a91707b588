"""One trial of a sweep, in the process that it was given: an ordinary run without the test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.errors import UserError
from raymi.sweeps.space import Values
from raymi.sweeps.sweep import Measured, Sweep, better


@dataclass(frozen=True)
class Ended:
    """How a trial ended: finished; paused, to be continued; or failed, and why."""

    how: Literal["finished", "paused", "failed"]
    reason: str | None = None


class TrialContext(LocalContext):
    """The engine's context in a trial: tells after each epoch that was validated.

    Args: device; sweep, whose stop file pauses all trials; number of the trial; tell.
    """

    def __init__(
        self,
        device: torch.device,
        sweep: Sweep,
        number: int,
        tell: Callable[[Measured], None],
    ) -> None:
        super().__init__(device, sweep.stop_file)
        self._sweep, self._number, self._tell = sweep, number, tell

    def report(self, metrics: Mapping[str, Any]) -> None:
        if metrics["phase"] != "classifier" or "val/robust_acc" not in metrics:
            return
        epoch = metrics["epoch"]
        now = Measured(epoch, metrics["val/clean_acc"], metrics["val/robust_acc"])
        before = [one for one in self._sweep.measured(self._number) if one.epoch < epoch]
        self._tell(better(before, now))


def run_trial(
    sweep: Sweep,
    number: int,
    values: Values,
    device: torch.device,
    tell: Callable[[Measured], None],
) -> Ended:
    """Trains a trial to its end, from its last checkpoint where there is one.

    Args: values that it drew; tell, takes what it reached after each validated epoch, also those of
        an earlier process, each as often as its process saw it.
    """
    folder = sweep.folder_of(number)
    try:
        config = sweep.config_of(values, number)
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.alone():
            folder.write_config(config)
            torch.set_num_threads(config.scaling.cpus_per_worker)
            outcome = train(config, TrialContext(device, sweep, number, tell), folder, test=False)
    except (UserError, FloatingPointError) as error:
        return Ended("failed", str(error))
    except torch.OutOfMemoryError as error:
        return Ended("failed", f"out of memory: {str(error).splitlines()[0]}")
    return Ended("finished" if outcome.finished else "paused")
