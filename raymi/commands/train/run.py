"""Training run: trained on Ray, evaluated, and uploaded to MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from raymi.commands.cli import EXIT_FAILED, EXIT_TIME_LIMIT
from raymi.commands.train.options import COMMAND, TrainRequest
from raymi.config import Config
from raymi.errors import StorageError
from raymi.ray_backend.train_driver import (
    NotStarted,
    RunCallback,
    RunFailed,
    TimeLimitReached,
    launch,
)
from raymi.runs.record import Evaluations, chosen_model, evaluations_of, read_record
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import home_folder, name_or_path, new_run_folder
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
        exit_code: 0: finished, and uploaded if tracked.
        evaluations: evaluation events by model; empty: the run has not finished.
        chosen: name of the chosen model; None: the run has not finished.
        model_uri: URI of the chosen model in MLflow; None: not there.
        mlflow_run: id of the run in MLflow; None: not there.
        tracking_uri: URI of the MLflow store.
    """

    folder: RunFolder
    exit_code: int
    evaluations: Evaluations = field(default_factory=dict)
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
    except NotStarted:
        if request.folder is None:  # its name remains available
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _run(
    config: Config, folder: RunFolder, callbacks: Sequence[RunCallback], print_line: PrintLine
) -> TrainResult:
    folder.write_config(config)
    print_line(f"run {folder.name} in {folder.path}")
    warnings = _Warnings(folder, print_line)
    tracker = None
    if config.tracking.enabled:
        tracker = Tracker(config, folder, folder.read_about(), home_folder(), print_line)
    to_continue = f"to continue: {resume_command(folder)}"
    status, code = "FAILED", EXIT_FAILED
    try:
        _train(config, folder, [*callbacks, warnings], tracker, print_line)
        status, code = "FINISHED", 0
    except (Stopped, KeyboardInterrupt) as error:
        stop = Stopped.of(error)
        status, code = "KILLED", stop.exit_code
        print_line(f"stopped by {stop.name}; {to_continue}")
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
        return TrainResult(folder, code)
    evaluations = evaluations_of(folder)
    chosen = chosen_model(evaluations)
    if tracker is None or not tracker.models:
        return TrainResult(folder, code, evaluations, chosen)
    uploaded = (tracker.models.get(chosen), tracker.run_id, tracker.uri)
    return TrainResult(folder, code, evaluations, chosen, *uploaded)


def _train(
    config: Config,
    folder: RunFolder,
    callbacks: Sequence[RunCallback],
    tracker: Tracker | None,
    print_line: PrintLine,
) -> None:
    """Runs the workers to the end of the run; a finished run is only tracked."""
    on_ray = tracker.start if tracker is not None else lambda: None
    if read_record(folder).is_evaluated:
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
    except (Stopped, KeyboardInterrupt) as error:
        stop = Stopped.of(error)
        tracker.break_off()
        print_line(
            f"stopped by {stop.name} before MLflow had everything; nothing is lost, deliver it "
            f"with: {resume}"
        )
        return stop.exit_code


def resume_command(folder: RunFolder) -> str:
    """Returns the command that continues a run, from the current folder."""
    return f"{COMMAND.program} resume={name_or_path(folder.path, home_folder() / 'runs')}"


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
