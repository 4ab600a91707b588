"""A run of a sweep in the process that it was given: an ordinary run without the test set."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raymi.config import Config
from raymi.engine.context import POLL_SECONDS, LocalContext
from raymi.engine.loop import train
from raymi.errors import StorageError, UserError, first_line, what_happened
from raymi.files import InUse
from raymi.runs.run_folder import RunFolder
from raymi.tuning.shared_stages import Part, parts_of
from raymi.tuning.space import Values
from raymi.tuning.sweep_folder import Sweep, TrialRun

WAIT_SECONDS = 1.0  # for another process, between two looks at whether the sweep is to stop

PATIENCE_SECONDS = 180.0  # for a process whose node was lost: NFS keeps its lock for 90 s

Report = Callable[[Mapping[str, Any]], None]
"""Takes what the engine reports after each epoch."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: finished; paused, to be continued; failed, and why; or blocked, as it cannot
    write, to be continued once it can."""

    how: Literal["finished", "paused", "failed", "blocked"]
    reason: str | None = None


Train = Callable[[Config, RunFolder, str, int | None], Ended]
"""Brings a run in its folder to the end of a phase, or of one of its epochs, from its last
checkpoint where there is one."""


def run_trial(
    sweep: Sweep, run: TrialRun, values: Values, train_run: Train, until_epoch: int | None = None
) -> Ended:
    """Brings a run of a trial to its end: first what it shares with others, if they have not.

    Args: values that the trial goes on with; until_epoch, of the classifier, after which it ends
        for now; None: its last one.
    """
    try:
        trial, parts = parts_of(sweep.config_of(values, run), sweep.shared)
        for part in parts:
            ended = _learn(part, sweep.stop_file, train_run)
            if ended.how != "finished":
                return ended
        folder = sweep.folder_of(run)
        folder.write_config(trial)
        with ExitStack() as stack:
            if not held(stack, folder, sweep.stop_file):
                return Ended("paused")
            return train_run(trial, folder, "classifier", until_epoch)
    except UserError as error:
        return Ended("failed", str(error))
    except StorageError as error:
        return Ended("blocked", str(error))


def held(stack: ExitStack, folder: RunFolder, stop_file: Path) -> bool:
    """Keeps other processes out of a run's folder until the stack ends; waits for one that is
    about to be gone. Whether it could."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            stack.enter_context(folder.lock(wait=WAIT_SECONDS))
            return True
        except InUse:
            if stop_file.exists() or time.monotonic() > deadline:
                return False


def _learn(part: Part, stop_file: Path, train_run: Train) -> Ended:
    """Trains a part, or waits for the process that is at it."""
    folder = part.folder
    while not part.is_there:
        if stop_file.exists():
            return Ended("paused")
        if not folder.config.is_file():
            folder.write_config(part.config)
        try:
            with folder.lock(wait=WAIT_SECONDS):
                if not part.is_there:
                    ended = train_run(folder.read_config(), folder, part.phase, None)
                    if ended.how != "finished":
                        return ended
        except InUse:
            continue
    return Ended("finished")


class _TellingContext(LocalContext):
    """The engine's context in one process: tells after each epoch."""

    def __init__(
        self, device: torch.device, stop_file: Path, tell: Report, poll_seconds: float
    ) -> None:
        super().__init__(device, stop_file, poll_seconds=poll_seconds)
        self._tell = tell

    def report(self, metrics: Mapping[str, Any]) -> None:
        self._tell(metrics)


def in_this_process(
    device: torch.device,
    stop_file: Path,
    tell: Report = lambda metrics: None,
    *,
    test: bool = False,
    poll_seconds: float = POLL_SECONDS,
) -> Train:
    """Trains in this process.

    Args:
        device: where to compute.
        stop_file: pauses a run.
        tell: takes what the engine reports after each epoch.
        test: whether the final models are evaluated on the test set.
        poll_seconds: seconds between two looks at the stop file.
    """

    def train_run(config: Config, folder: RunFolder, until: str, until_epoch: int | None) -> Ended:
        torch.set_num_threads(config.scaling.cpus_per_worker)
        context = _TellingContext(device, stop_file, tell, poll_seconds)
        try:
            outcome = train(
                config, context, folder, test=test, until=until, until_epoch=until_epoch
            )
        except FloatingPointError as error:
            return Ended("failed", str(error))
        except torch.OutOfMemoryError as error:
            return Ended("failed", f"out of memory: {first_line(error)}")
        except (UserError, StorageError):
            raise
        except Exception as error:
            log = folder.path / "error-rank0.log"
            with suppress(OSError):
                log.write_text(traceback.format_exc())
            return Ended("failed", f"{what_happened(error)} (whole error: {log})")
        is_there = outcome.finished or outcome.epoch == until_epoch
        return Ended("finished" if is_there else "paused")

    return train_run
