"""The driver of a run: starts the workers, follows the run's journal, and ends cleanly when asked
to.

Ray Train runs in a thread of the driver; the main thread reads what the workers write down, and
answers signals. A stop is a request: workers write a checkpoint at the next step and end.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from raymi.config import Config
from raymi.errors import StorageError, UserError
from raymi.ray_backend import head_watch
from raymi.ray_backend.failures import innermost, left_failure, remove_traces
from raymi.ray_backend.head_watch import RayLost
from raymi.ray_backend.session import Resources, ray_session
from raymi.runs.journal import JournalReader
from raymi.runs.run_folder import RunFolder
from raymi.signals import Signals, Stopped, nothing

POLL_SECONDS = 0.1
END_SECONDS = 10.0  # that Ray Train may take to end, once nobody waits for its result


class RunCallback(Protocol):
    """Somebody who wants to know what happens in a run."""

    def event(self, event: dict[str, Any]) -> None:
        """Takes one event of the journal; must return quickly."""


class TimeLimitReached(Exception):
    """The run ended at `limit.hours`, with a checkpoint."""


class RunFailed(RuntimeError):
    """The run ended by an error of the program or the cluster, after all restarts."""


class NotBegun(UserError):
    """Failure before any work of a run: Ray does not start, or has no room for it."""


def launch(
    config: Config,
    folder: RunFolder,
    callbacks: Sequence[RunCallback],
    *,
    on_signal: Callable[[], object] = nothing,
    on_ray: Callable[[], None] = lambda: None,
    print_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Runs a configuration to its end on Ray.

    Args:
        config: The resolved configuration.
        folder: The run's, with the configuration written; a checkpoint in it is continued.
        callbacks: Take in order each event from now on, and `stopping`.
        on_signal: Called in the handler of the first SIGINT or SIGTERM.
        on_ray: Called once Ray is there, before any work.
        say: Takes lines about waits for Ray.

    Raises:
        NotBegun: Ray does not start, or has no room.
        UserError: Anything else that the user can put right.
        StorageError: The run's folder cannot be written any more.
        Stopped: After SIGINT or SIGTERM.
        TimeLimitReached: After `limit.hours`.
        RunFailed: Any other failure.
    """
    hours = config.limit.hours
    deadline = None if hours is None else time.time() + 3600 * hours  # of workers elsewhere, too
    end = None if hours is None else time.monotonic() + 3600 * hours
    remove_traces(folder)
    journal = JournalReader(folder.journal)
    journal.new_events()  # those of an earlier start were told then
    before = journal.offset
    with Signals(folder.stop_file, on_signal) as signals, ExitStack() as stack:
        try:
            resources = stack.enter_context(
                ray_session(config.scaling, print_line=print_line, check=signals.check_before_work)
            )
        except UserError as error:
            raise NotBegun(str(error)) from None
        signals.check_before_work()
        on_ray()
        trainer = _TrainerThread(config, folder, resources, deadline)
        trainer.start()
        try:
            while trainer.is_alive():
                trainer.join(POLL_SECONDS)
                _tell(callbacks, journal)
                _raise_failure(folder)
                if signals.is_new():
                    _tell_one(callbacks, {"kind": "stopping", "signal": signals.name})
                signals.check(work_has_begun=journal.offset > before)
                head_watch.check()
            if trainer.error is not None:
                head_watch.check_after_an_error()
        except RayLost as loss:
            _tell(callbacks, journal)
            raise RunFailed(str(loss)) from None
        finally:
            if not head_watch.is_lost():
                trainer.end()
        _tell(callbacks, journal)
        _raise_failure(folder)
        if trainer.error is not None:
            raise RunFailed(innermost(trainer.error, folder)) from None
        result = trainer.result or {}
        if "problem" in result:
            raise StorageError(result["problem"])
        if not result.get("finished"):
            if signals.received is not None:
                raise Stopped(signals.received)
            if end is not None and (time.monotonic() >= end or not folder.stop_file.exists()):
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
            from raymi.ray_backend.train import fit

            self.result = fit(
                self.config,
                self.folder,
                use_gpu=self.resources.use_gpu,
                deadline=self.deadline,
            )
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Ends it, if it has not ended by itself, while there still is a Ray: a thread that waits
        for an answer of Ray's as that shuts down may take the whole process along, without a word.
        """
        deadline = time.monotonic() + END_SECONDS
        while self.is_alive() and time.monotonic() < deadline:
            _kill_actors()  # and those that it has started meanwhile
            self.join(POLL_SECONDS)


def _kill_actors() -> None:
    """Those that this process has started, which is Ray Train's controller; its workers end with
    it. Ray Train tells nobody of it, so that it is looked for among all objects."""
    import ray
    from ray.actor import ActorHandle

    for handle in [one for one in gc.get_objects() if type(one) is ActorHandle]:
        with suppress(Exception):  # a cluster that is gone has none either
            ray.kill(handle)


def _tell(callbacks: Sequence[RunCallback], journal: JournalReader) -> None:
    for event in journal.new_events():
        _tell_one(callbacks, event)


def _tell_one(callbacks: Sequence[RunCallback], event: dict[str, Any]) -> None:
    for follower in callbacks:
        follower.event(event)


def _raise_failure(folder: RunFolder) -> None:
    if (message := left_failure(folder)) is not None:
        raise UserError(message)
