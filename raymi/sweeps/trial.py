"""A run of a sweep in the process that it was given: an ordinary run without the test set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raymi.config import Config
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.engine.run_folder import RunFolder
from raymi.errors import UserError
from raymi.sweeps.space import Values
from raymi.sweeps.sweep import Run, Sweep

Report = Callable[[Mapping[str, Any]], None]
"""Takes what the engine reports after each epoch."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: finished; paused, to be continued; failed, and why; or blocked, as it cannot
    write, to be continued once it can."""

    how: Literal["finished", "paused", "failed", "blocked"]
    reason: str | None = None


class TrialContext(LocalContext):
    """The engine's context in one process: tells after each epoch.

    Args: device; stop_file, that pauses all trials; tell.
    """

    def __init__(self, device: torch.device, stop_file: Path, tell: Report) -> None:
        super().__init__(device, stop_file)
        self._tell = tell

    def report(self, metrics: Mapping[str, Any]) -> None:
        self._tell(metrics)


def run_trial(
    sweep: Sweep,
    run: Run,
    values: Values,
    device: torch.device,
    tell: Report = lambda metrics: None,
) -> Ended:
    """Brings a run of a trial to its end in this process.

    Args: values that the trial drew; tell, takes what the engine reports after each epoch.
    """
    try:
        with prepared(sweep, run, values) as (config, folder):
            return run_here(config, folder, device, sweep.stop_file, tell)
    except UserError as error:
        return Ended("failed", str(error))


@contextmanager
def prepared(sweep: Sweep, run: Run, values: Values) -> Iterator[tuple[Config, RunFolder]]:
    """A run's configuration, written into its folder, which is kept from other processes within.

    Raises: UserError where the values do not fit, or another process has the run; StorageError.
    """
    config, folder = sweep.config_of(values, run), sweep.folder_of(run)
    folder.write_config(config)
    with folder.alone():
        yield config, folder


def run_here(
    config: Config,
    folder: RunFolder,
    device: torch.device,
    stop_file: Path,
    tell: Report = lambda metrics: None,
    *,
    test: bool = False,
) -> Ended:
    """Brings a run to its end in this process, from its last checkpoint where there is one.

    Args: folder, with the configuration written; stop_file, pauses it; tell, takes what the engine
        reports after each epoch; test, whether the test set is looked at in the end.
    """
    torch.set_num_threads(config.scaling.cpus_per_worker)
    try:
        outcome = train(config, TrialContext(device, stop_file, tell), folder, test=test)
    except (UserError, FloatingPointError) as error:
        return Ended("failed", str(error))
    except torch.OutOfMemoryError as error:
        return Ended("failed", f"out of memory: {str(error).splitlines()[0]}")
    return Ended("finished" if outcome.finished else "paused")
