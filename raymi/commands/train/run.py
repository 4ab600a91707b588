"""Training run: trained on Ray, evaluated, and uploaded to MLflow."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from raymi.commands.cli import EXIT_FAILED, EXIT_TIME_LIMIT, signal_number
from raymi.commands.train.options import COMMAND, TrainRequest
from raymi.config import Config
from raymi.errors import StorageError
from raymi.ray_backend.train_driver import (
    NotBegun,
    RunCallback,
    RunFailed,
    TimeLimitReached,
    launch,
)
from raymi.runs.record import chosen_model, missing_evaluations, read_record
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import called, home_folder, new_run_folder
from raymi.signals import Stopped, ended_by_sigterm, nothing
from raymi.tracking.delivery import FAIL_SECONDS, FINISH_SECONDS
from raymi.tracking.provenance import describe_run
from raymi.tracking.tracker import Tracker

LOCK_SECONDS = 3.0
"""Seconds to wait for a command that checks whether the run is active."""
PrintLine = Callable[..., None]
"""Callback `(message, style="")` for a line to the user; called from any thread."""


@dataclass(frozen=True)
class TrainResult:
    """End of a run.

    Attributes:
        folder: folder of the run.
        exit_code: 0: finished.
        evaluations: evaluation events by model.
        chosen: name of the chosen model; None: the run has not finished.
        model_uri: URI of the chosen model in MLflow; None: not there.
        mlflow_run: id of the run in MLflow; None: not there.
        tracking_uri: URI of the MLflow store.
    """

    folder: RunFolder
    exit_code: int
    evaluations: Mapping[str, Mapping[str, Any]]
    chosen: str | None = None
    model_uri: str | None = None
    mlflow_run: str | None = None
    tracking_uri: str | None = None


def train(
    request: TrainRequest,
    callbacks: Sequence[RunCallback] = (),
    print_line: PrintLine = lambda *_, **__: None,
) -> TrainResult:
    """Trains, evaluates and tracks a run.

    Args:
        request: run to begin or to continue.
        callbacks: callbacks for each event of the journal, `stopping` and `uploading`.
        print_line: callback for messages.

    Raises:
        UserError: invalid input that appears during the run.
        StorageError: the folder of the run cannot be written.
    """
    folder = request.folder or new_run_folder(request.config, request.recipe)
    try:
        with folder.lock(wait=LOCK_SECONDS):
            describe_run(folder, request.recipe, request.command)
            return _run(request.config, folder, callbacks, print_line)
    except NotBegun:
        if request.folder is None:  # its name remains available
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _run(
    config: Config, folder: RunFolder, callbacks: Sequence[RunCallback], print_line: PrintLine
) -> TrainResult:
    folder.write_config(config)
    print_line(f"run {folder.name} in {folder.path}")
    results, warnings = _Results(folder), _Warnings(folder, print_line)
    tracker = None
    if config.tracking.enabled:
        tracker = Tracker(config, folder, folder.read_about(), home_folder(), print_line)
    to_continue = f"to continue: {resume_command(folder)}"
    status, code = "FAILED", EXIT_FAILED
    try:
        _train(config, folder, [*callbacks, results, warnings], tracker, print_line, results)
        status, code = "FINISHED", 0
    except (Stopped, KeyboardInterrupt) as stop:
        signum = signal_number(stop)
        status, code = "KILLED", 128 + signum
        print_line(f"stopped by {signal.Signals(signum).name}; {to_continue}")
    except TimeLimitReached:
        status, code = "KILLED", EXIT_TIME_LIMIT
        print_line(f"stopped at its limit of {config.limit.hours:g} hours; {to_continue}")
    except (RunFailed, StorageError) as failure:
        print_line(f"the run failed: {failure}", style="red")
        print_line(to_continue)
    finally:
        warnings.show()
        if tracker is not None and tracker.ident is None:
            tracker = None  # Ray did not start: MLflow has no run of this one
        if tracker is not None:
            for callback in callbacks:
                callback.event({"kind": "uploading"})
            code = _upload(tracker, status, print_line, resume_command(folder)) or code
    if status != "FINISHED":
        return TrainResult(folder, code, results.evaluations)
    if not results.evaluations:
        raise missing_evaluations(folder)
    chosen = chosen_model(results.evaluations)
    if tracker is None or not tracker.models:
        return TrainResult(folder, code, results.evaluations, chosen)
    uploaded = (tracker.models.get(chosen), tracker.run_id, tracker.uri)
    return TrainResult(folder, code, results.evaluations, chosen, *uploaded)


def _train(
    config: Config,
    folder: RunFolder,
    callbacks: Sequence[RunCallback],
    tracker: Tracker | None,
    print_line: PrintLine,
    results: _Results,
) -> None:
    """Runs the workers to the end of the run; a finished run is only tracked."""
    on_ray = tracker.start if tracker is not None else lambda: None
    if results.finished:
        on_ray()
        return
    on_signal = nothing if tracker is None else tracker.interrupt
    with ended_by_sigterm(on_signal):
        launch(config, folder, callbacks, on_signal=on_signal, on_ray=on_ray, print_line=print_line)


def _upload(tracker: Tracker, status: str, print_line: PrintLine, resume: str) -> int:
    """Uploads the rest of a run that has ended; a signal interrupts it.

    Returns:
        0, or the exit code of an end by a signal.
    """
    try:
        with ended_by_sigterm(tracker.interrupt):
            timeout = FINISH_SECONDS if status == "FINISHED" else FAIL_SECONDS
            if not tracker.close(status, timeout, FAIL_SECONDS):
                print_line(tracker.undelivered(resume))
            return 0
    except (Stopped, KeyboardInterrupt) as stop:
        signum = signal_number(stop)
        tracker.break_off()
        print_line(
            f"stopped by {signal.Signals(signum).name} before MLflow had everything; nothing is "
            f"lost, deliver it with: {resume}"
        )
        return 128 + signum


def resume_command(folder: RunFolder) -> str:
    """Returns the command that continues a run, from the current folder."""
    return f"{COMMAND} resume={called(folder.path, home_folder() / 'runs')}"


class _Results:
    """Callback that collects the evaluations of a run, including those of earlier starts."""

    def __init__(self, folder: RunFolder) -> None:
        record = read_record(folder)
        self.evaluations: dict[str, Mapping[str, Any]] = record.evaluations
        self.finished = record.finished and bool(self.evaluations)

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "evaluation":
            self.evaluations[event["which"]] = event
        self.finished = self.finished or event["kind"] == "finished"


class _Warnings:
    """Callback that prints each new warning of the workers once."""

    def __init__(self, folder: RunFolder, print_line: PrintLine) -> None:
        self.path, self.print_line = folder.warnings, print_line
        self.shown = set(self._lines())

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "epoch":
            self.show()

    def show(self) -> None:
        for line in self._lines():
            if line not in self.shown:
                self.shown.add(line)
                self.print_line(f"warning: {line}")

    def _lines(self) -> list[str]:
        with suppress(FileNotFoundError):
            return self.path.read_text(errors="replace").splitlines()
        return []
