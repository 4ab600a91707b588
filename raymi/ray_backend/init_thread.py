"""Thread that connects a driver to Ray and disconnects it, so that both waits have a time limit.

`ray.init` ignores signals while it waits for Ray's processes, and has hung for 16 minutes. The
thread that started a local Ray must live as long as it: Linux ends Ray's processes with the thread.
"""

from __future__ import annotations

import atexit
import signal
import threading
import time
from collections.abc import Callable

from raymi.signals import BackgroundThread, skip_cleanup

_POLL_SECONDS = 0.1


class NotConnected(Exception):
    """Failure to connect to Ray: an error, which is the cause, or a timeout."""


class RayConnection:
    """A driver's connection to Ray.

    Args:
        connect: Connects this process to Ray.
    """

    def __init__(self, connect: Callable[[], object]) -> None:
        self._connect = connect
        self._error: BaseException | None = None
        self._answered, self._leave = threading.Event(), threading.Event()
        self._thread = BackgroundThread("ray-connection", self._run)

    def start(self, seconds: float, check: Callable[[], None]) -> None:
        """Connects.

        Args:
            seconds: Time limit.
            check: Called during the wait; an exception ends it.

        Raises:
            NotConnected: Ray did not answer in time, or with an error.
        """
        self._thread.start()
        deadline = time.monotonic() + seconds
        while not self._answered.wait(_POLL_SECONDS):  # signals are handled in between
            check()
            if time.monotonic() > deadline:
                raise NotConnected(f"no answer within {seconds:.0f} s")
        if self._error is not None:
            raise NotConnected from self._error
        _handle_sigterm_in_python()

    @property
    def answered(self) -> bool:
        """True once Ray has answered or failed."""
        return self._answered.is_set()

    def end(self, seconds: float) -> None:
        """Disconnects from Ray; after the time limit the process exits without waiting for it."""
        import ray

        self._leave.set()
        try:
            self._thread.join(seconds)
        finally:  # also after a second Ctrl-C
            if self._thread.is_alive():
                atexit.unregister(ray.shutdown)  # it would wait without limit, too
                skip_cleanup()

    def _run(self) -> None:
        import ray

        try:
            self._connect()
        except BaseException as error:
            self._error = error
        self._answered.set()
        if self._error is None:
            self._leave.wait()
        try:
            ray.shutdown()  # also after a partial start
        except BaseException as error:
            self._error = self._error or error


def _handle_sigterm_in_python() -> None:
    """Installs Python's handler of SIGTERM again.

    `ray.init` installs one that aborts the process 3 s after the signal, and restores Python's in
    the main thread only.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
