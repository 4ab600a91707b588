"""The driver of a run: starts the workers, follows the run's journal, and ends cleanly when asked
to.

Ray Train runs in a thread of the driver; the main thread reads what the workers write down, and
answers signals. A stop is a request: workers write a checkpoint at the next step and end.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from raymi.config import Config
from raymi.engine.journal import JournalReader
from raymi.engine.run_folder import RunFolder
from raymi.errors import StorageError, UserError
from raymi.orchestration.ray_session import Resources, ray_session

POLL_SECONDS = 0.1
RESIZE_SECONDS = 30.0  # between two looks at the cluster; Ray's own view is up to 20 s old
STOP_SECONDS = 30.0  # how long a requested stop may take before workers are ended


class Follower(Protocol):
    """Somebody who wants to know what happens in a run."""

    def event(self, event: dict[str, Any]) -> None:
        """Takes one event of the journal; must return quickly."""


class Stopped(Exception):
    """The run ended on a signal, with everything up to its last checkpoint kept."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class TimeLimitReached(Exception):
    """The run ended at `limit.hours`, with a checkpoint."""


class RunFailed(RuntimeError):
    """The run ended by an error of the program or the cluster, after all restarts."""


def launch(config: Config, folder: RunFolder, followers: Sequence[Follower]) -> None:
    """Runs a configuration to its end on Ray.

    Args:
        folder: the run's, with the configuration written; a checkpoint in it is continued.
        followers: told in order of each event from now on, and of `stopping`.
    Raises: UserError for what the user can put right; StorageError where the run's folder cannot be
        written any more; Stopped after SIGINT or SIGTERM; TimeLimitReached; RunFailed.
    """
    hours = config.limit.hours
    deadline = None if hours is None else time.time() + 3600 * hours
    for leftover in (folder.stop_file, folder.pause_file, folder.failure, *folder.error_logs()):
        leftover.unlink(missing_ok=True)
    journal = JournalReader(folder.journal)
    journal.new_events()  # those of an earlier start were told then
    before = journal.offset
    with _Signals(folder.stop_file) as signals, ray_session(config.scaling) as resources:
        signals.listen()  # again: ray.init takes SIGTERM for itself
        signals.check_before_work()
        trainer = _TrainerThread(config, folder, resources, deadline)
        trainer.start()
        while trainer.is_alive():
            trainer.join(POLL_SECONDS)
            _tell(followers, journal)
            _raise_failure(folder)
            if signals.is_new():
                _tell_one(followers, {"kind": "stopping", "signal": signals.name})
            signals.check(work_has_begun=journal.offset > before)
        _tell(followers, journal)
        _raise_failure(folder)
        if trainer.error is not None:
            raise RunFailed(_innermost(trainer.error, folder)) from None
        result = trainer.result or {}
        if "problem" in result:
            raise StorageError(result["problem"])
        if not result.get("finished"):
            if signals.received is not None:
                raise Stopped(signals.received)
            if deadline is not None and time.time() >= deadline:
                raise TimeLimitReached
            raise RunFailed(f"the workers were asked to stop, by a file {folder.stop_file}")


class _TrainerThread(threading.Thread):
    """Ray Train's `fit`; in a thread, so that signals are ours to handle."""

    def __init__(
        self, config: Config, folder: RunFolder, resources: Resources, deadline: float | None
    ) -> None:
        super().__init__(daemon=True, name="ray-train")
        self.config, self.folder, self.resources = config, folder, resources
        self.deadline = deadline
        self.error: BaseException | None = None
        self.result: dict[str, Any] | None = None

    def run(self) -> None:
        try:
            self.result = self._fit()
        except BaseException as error:
            self.error = error

    def _fit(self) -> dict[str, Any] | None:
        import ray.train
        from ray.train.torch import TorchTrainer

        from raymi.orchestration.worker import train_worker

        scaling = self.config.scaling
        callbacks: list[Any] = []
        if scaling.elastic:  # what that needs of Ray is not public: no other run depends on it
            from raymi.orchestration.resize import FailuresWithoutProgress, SaveBeforeResize

            callbacks.append(SaveBeforeResize(self.folder))
            callbacks.append(FailuresWithoutProgress(self.folder, scaling.max_failures))
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "config": self.config.model_dump_json(),
                "folder": str(self.folder.path),
                "import_path": os.getcwd(),
                "deadline": self.deadline,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=(
                    (scaling.least_workers, scaling.most_workers)
                    if scaling.elastic
                    else scaling.most_workers
                ),
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,
                use_gpu=self.resources.use_gpu,
                resources_per_worker={
                    "CPU": scaling.cpus_per_worker,
                    **({"GPU": 1} if self.resources.use_gpu else {}),
                },
            ),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=str(self.folder.path),
                callbacks=callbacks,
                failure_config=ray.train.FailureConfig(
                    max_failures=-1 if scaling.elastic else scaling.max_failures
                ),
            ),
        )
        return trainer.fit().return_value


class _Signals:
    """Turns the first SIGINT or SIGTERM into a request to stop, the second one into an end at
    once."""

    def __init__(self, stop_file: Path) -> None:
        self.stop_file = stop_file
        self.received: int | None = None
        self._deadline = 0.0
        self._new = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        self.listen()
        return self

    def listen(self) -> None:
        """Takes both signals; what handled them at first is put back at the end."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            handler = signal.signal(signum, self._on_signal)
            self._before.setdefault(signum, handler)

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, _frame: object) -> None:
        if self.received is not None:
            raise Stopped(signum)
        self.received = signum
        self._new = True
        self._deadline = time.monotonic() + STOP_SECONDS
        with suppress(OSError):  # the run's folder may be gone
            self.stop_file.touch()

    @property
    def name(self) -> str:
        """Name of the signal that came."""
        return signal.Signals(self.received or signal.SIGINT).name

    def is_new(self) -> bool:
        """True once after a signal came."""
        was_new, self._new = self._new, False
        return was_new

    def check_before_work(self) -> None:
        if self.received is not None:
            raise Stopped(self.received)

    def check(self, *, work_has_begun: bool) -> None:
        """Ends the wait for workers that have nothing to save yet, or that do not answer."""
        if self.received is not None and (not work_has_begun or time.monotonic() > self._deadline):
            raise Stopped(self.received)


def _tell(followers: Sequence[Follower], journal: JournalReader) -> None:
    for event in journal.new_events():
        _tell_one(followers, event)


def _tell_one(followers: Sequence[Follower], event: dict[str, Any]) -> None:
    for follower in followers:
        follower.event(event)


def _raise_failure(folder: RunFolder) -> None:
    if folder.failure.is_file():
        raise UserError(json.loads(folder.failure.read_text())["message"])


def _innermost(error: BaseException, folder: RunFolder) -> str:
    """What went wrong in a worker, without Ray's frames around it; the whole is in the run's
    folder."""
    logs = sorted(folder.error_logs(), key=lambda path: path.stat().st_mtime)
    if not logs:  # a worker died without a word
        logs = [folder.path / "error-ray.log"]
        try:
            logs[0].write_text(str(error))
        except OSError as unwritten:
            return f"{error} (cannot write {logs[0]}: {unwritten.strerror})"
    lines = [line.strip() for line in logs[0].read_text().splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File ")]
    where = f" in {places[-1].removeprefix('File ')}" if places else ""
    last = lines[-1] if lines else type(error).__name__
    return f"{last}{where} (whole error: {logs[0]})"
