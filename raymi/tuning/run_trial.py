"""Run of a trial in the current process: an ordinary run without the test set."""

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
from raymi.tuning.shared_stages import SharedStage, split_shared_stages
from raymi.tuning.space import Values
from raymi.tuning.sweep_folder import Sweep, TrialRun

WAIT_SECONDS = 1.0  # for another process, before the stop file is checked again

PATIENCE_SECONDS = 180.0  # for a process whose node was lost: NFS keeps its lock for 90 s

OnReport = Callable[[Mapping[str, Any]], None]
"""Callback for the engine's metrics after each epoch."""


@dataclass(frozen=True)
class TrialResult:
    """Status of a run after its process has returned.

    Attributes:
        status: "finished"; "paused", to be continued; "failed"; or "blocked": it cannot write, and
            can be continued once it can.
        reason: Reason of a failed or blocked run.
    """

    status: Literal["finished", "paused", "failed", "blocked"]
    reason: str | None = None


TrainFunction = Callable[[Config, RunFolder, str, int | None], TrialResult]
"""Trains a run in its folder, from its last checkpoint, to the end of a phase or of an epoch."""


def run_trial(
    sweep: Sweep,
    run: TrialRun,
    values: Values,
    train_run: TrainFunction,
    until_epoch: int | None = None,
) -> TrialResult:
    """Trains a run of a trial, after the stages that it shares with other trials.

    Args:
        sweep: The sweep.
        run: Trial and seed.
        values: Values that the trial trains with.
        train_run: Trains a run.
        until_epoch: Epoch of the classifier after which the run pauses; None: the last one.
    """
    try:
        trial, stages = split_shared_stages(sweep.config_of(values, run), sweep.shared)
        for stage in stages:
            result = _train_stage(stage, sweep.stop_file, train_run)
            if result.status != "finished":
                return result
        folder = sweep.folder_of(run)
        folder.write_config(trial)
        with ExitStack() as stack:
            if not lock_run(stack, folder, sweep.stop_file):
                return TrialResult("paused")
            return train_run(trial, folder, "classifier", until_epoch)
    except UserError as error:
        return TrialResult("failed", str(error))
    except StorageError as error:
        return TrialResult("blocked", str(error))


def lock_run(stack: ExitStack, folder: RunFolder, stop_file: Path) -> bool:
    """Locks a run's folder until the stack closes; waits for a process that is ending.

    Returns:
        Whether the folder is locked; False after `PATIENCE_SECONDS` or on a stop request.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            stack.enter_context(folder.lock(wait=WAIT_SECONDS))
            return True
        except InUse:
            if stop_file.exists() or time.monotonic() > deadline:
                return False


def _train_stage(stage: SharedStage, stop_file: Path, train_run: TrainFunction) -> TrialResult:
    """Trains a shared stage, or waits for the process that trains it."""
    folder = stage.folder
    while not stage.is_trained:
        if stop_file.exists():
            return TrialResult("paused")
        if not folder.config.is_file():
            folder.write_config(stage.config)
        try:
            with folder.lock(wait=WAIT_SECONDS):
                if not stage.is_trained:
                    result = train_run(folder.read_config(), folder, stage.phase, None)
                    if result.status != "finished":
                        return result
        except InUse:
            continue
    return TrialResult("finished")


class _ReportingContext(LocalContext):
    """Context of one process that passes each epoch's metrics to a callback."""

    def __init__(
        self, device: torch.device, stop_file: Path, on_report: OnReport, poll_seconds: float
    ) -> None:
        super().__init__(device, stop_file, poll_seconds=poll_seconds)
        self._on_report = on_report

    def report(self, metrics: Mapping[str, Any]) -> None:
        self._on_report(metrics)


def in_this_process(
    device: torch.device,
    stop_file: Path,
    on_report: OnReport = lambda metrics: None,
    *,
    test: bool = False,
    poll_seconds: float = POLL_SECONDS,
) -> TrainFunction:
    """Returns a function that trains in this process.

    Args:
        device: Device of the training.
        stop_file: File whose existence pauses a run.
        on_report: Receives the metrics after each epoch.
        test: Whether to evaluate the final models on the test set.
        poll_seconds: Seconds between two checks of the stop file.
    """

    def train_run(
        config: Config, folder: RunFolder, until: str, until_epoch: int | None
    ) -> TrialResult:
        torch.set_num_threads(config.scaling.cpus_per_worker)
        context = _ReportingContext(device, stop_file, on_report, poll_seconds)
        try:
            outcome = train(
                config, context, folder, test=test, until=until, until_epoch=until_epoch
            )
        except FloatingPointError as error:
            return TrialResult("failed", str(error))
        except torch.OutOfMemoryError as error:
            return TrialResult("failed", f"out of memory: {first_line(error)}")
        except (UserError, StorageError):
            raise
        except Exception as error:
            log = folder.path / "error-rank0.log"
            with suppress(OSError):
                log.write_text(traceback.format_exc())
            return TrialResult("failed", f"{what_happened(error)} (whole error: {log})")
        finished = outcome.finished or outcome.epoch == until_epoch
        return TrialResult("finished" if finished else "paused")

    return train_run
