"""Driver of a run: starts the workers, passes the journal's events to callbacks, handles signals.

Ray Train runs in a thread of the driver; the main thread reads the journal. A stop is a request:
workers write a checkpoint after the current step and end.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from raymi.config import Config
from raymi.errors import StorageError, UserError
from raymi.ray_backend import head_watch
from raymi.ray_backend.background import BackgroundCall
from raymi.ray_backend.failures import read_failure, remove_leftovers, root_cause
from raymi.ray_backend.head_watch import RayLost
from raymi.ray_backend.session import Resources, ray_session
from raymi.runs.journal import JournalReader
from raymi.runs.run_folder import RunFolder
from raymi.signals import Signals, Stopped, nothing

POLL_SECONDS = 0.1
END_SECONDS = 10.0  # for Ray Train to end after a failure or a stop


class RunCallback(Protocol):
    """Callback for run events."""

    def event(self, event: dict[str, Any]) -> None:
        """Handles one event of the journal; must return quickly."""


class TimeLimitReached(Exception):
    """End of a run at `limit.hours`, with a checkpoint."""


class RunFailed(RuntimeError):
    """Failure of a run by an error of the program or the cluster, after all restarts."""


class NotStarted(UserError):
    """Failure before any work of a run: Ray does not start, or has no slots for it."""


def launch(
    config: Config,
    folder: RunFolder,
    callbacks: Sequence[RunCallback],
    *,
    on_signal: Callable[[], object] = nothing,
    on_ray: Callable[[], None] = lambda: None,
    print_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains a run to its end on Ray.

    Args:
        config: The resolved configuration.
        folder: Folder of the run with its configuration; the run continues from its checkpoint.
        callbacks: Receive in order every new event of the journal, and `stopping`.
        on_signal: Called in the handler of the first SIGINT or SIGTERM.
        on_ray: Called once Ray has started, before any work.
        print_line: Prints a message about waiting for Ray.

    Raises:
        NotStarted: Ray does not start, or has no slots.
        UserError: Any other failure that the user can fix.
        StorageError: The run's folder cannot be written.
        Stopped: After SIGINT or SIGTERM.
        TimeLimitReached: After `limit.hours`.
        RunFailed: Any other failure.
    """
    hours = config.limit.hours
    deadline = None if hours is None else time.time() + 3600 * hours  # for all nodes
    end = None if hours is None else time.monotonic() + 3600 * hours
    remove_leftovers(folder)
    journal = JournalReader(folder.journal)
    journal.new_events()  # skips the events of earlier starts
    before = journal.offset
    with Signals(folder.stop_file, on_signal) as signals, ExitStack() as stack:
        try:
            resources = stack.enter_context(
                ray_session(config.scaling, print_line=print_line, check=signals.check_before_work)
            )
        except UserError as error:
            raise NotStarted(str(error)) from None
        signals.check_before_work()
        on_ray()
        training = BackgroundCall("ray-train", lambda: _fit(config, folder, resources, deadline))
        training.start()
        try:
            while training.is_alive():
                training.join(POLL_SECONDS)
                _send_new_events(callbacks, journal)
                _raise_failure(folder)
                if signals.is_new():
                    _send_event(callbacks, {"kind": "stopping", "signal": signals.name})
                signals.check(work_has_begun=journal.offset > before)
                head_watch.check()
            if training.error is not None:
                head_watch.check_after_error()
        except RayLost as loss:
            _send_new_events(callbacks, journal)
            raise RunFailed(str(loss)) from None
        finally:
            if not head_watch.head_lost():
                _end(training)
        _send_new_events(callbacks, journal)
        _raise_failure(folder)
        if training.error is not None:
            raise RunFailed(root_cause(training.error, folder)) from None
        result = training.result or {}
        if "problem" in result:
            raise StorageError(result["problem"])
        if not result.get("finished"):
            if signals.received is not None:
                raise Stopped(signals.received)
            if end is not None and (time.monotonic() >= end or not folder.stop_file.exists()):
                raise TimeLimitReached
            raise RunFailed(f"a stop was requested by the file {folder.stop_file}")


def _fit(
    config: Config, folder: RunFolder, resources: Resources, deadline: float | None
) -> dict[str, Any]:
    from raymi.ray_backend.train import fit

    return fit(config, folder, use_gpu=resources.use_gpu, deadline=deadline) or {}


def _end(training: BackgroundCall[Any]) -> None:
    """Ends Ray Train before Ray shuts down.

    A thread that waits for Ray during its shutdown can end the whole process without a message.
    """
    deadline = time.monotonic() + END_SECONDS
    while training.is_alive() and time.monotonic() < deadline:
        _kill_actors()  # also those started meanwhile
        training.join(POLL_SECONDS)


def _kill_actors() -> None:
    """Kills the actors of this process: Ray Train's controller, whose workers end with it.

    Ray Train does not expose it, so that this searches all objects.
    """
    import ray
    from ray.actor import ActorHandle

    for handle in [one for one in gc.get_objects() if type(one) is ActorHandle]:
        with suppress(Exception):  # the cluster may be gone
            ray.kill(handle)


def _send_new_events(callbacks: Sequence[RunCallback], journal: JournalReader) -> None:
    for event in journal.new_events():
        _send_event(callbacks, event)


def _send_event(callbacks: Sequence[RunCallback], event: dict[str, Any]) -> None:
    for callback in callbacks:
        callback.event(event)


def _raise_failure(folder: RunFolder) -> None:
    if (message := read_failure(folder)) is not None:
        raise UserError(message)
