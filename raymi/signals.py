"""SIGINT and SIGTERM: requests to stop a command, and its end without clean-up."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STOP_SECONDS = 30.0
"""Seconds that a requested stop may take before workers are ended."""

_skips_cleanup = False


class Stopped(Exception):
    """End of a command by a signal; everything up to its last checkpoint is saved.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(self.name)

    @classmethod
    def of(cls, error: Stopped | KeyboardInterrupt) -> Stopped:
        """Returns the error itself, or the one for SIGINT in place of a KeyboardInterrupt."""
        return error if isinstance(error, Stopped) else cls(signal.SIGINT)

    @property
    def name(self) -> str:
        """Name of the signal, such as SIGINT."""
        return signal.Signals(self.signum).name

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 128 + the number of the signal."""
        return 128 + self.signum


class BackgroundThread(threading.Thread):
    """Daemon thread whose `join` a signal handler may end by an exception.

    After such an exception, Python before 3.13 takes the thread for ended while it is running.

    Args:
        name: of the thread.
        target: called in the thread, unless a subclass has its own `work`.
    """

    def __init__(self, name: str, target: Callable[[], object] | None = None) -> None:
        super().__init__(daemon=True, name=name, target=target)
        self._work_ended = threading.Event()

    def run(self) -> None:
        """Calls `work`."""
        try:
            self.work()
        finally:
            self._work_ended.set()

    def work(self) -> None:
        """Calls the target."""
        super().run()

    def join(self, timeout: float | None = None) -> None:
        """Waits for the end of the thread, at most `timeout` seconds."""
        self._work_ended.wait(timeout)

    def is_alive(self) -> bool:
        """Returns whether the thread was started and has not ended."""
        return self.ident is not None and not self._work_ended.is_set()


def nothing() -> None:
    """Does nothing."""


class Signals:
    """Handler of SIGINT and SIGTERM: the first requests a stop, the second ends immediately.

    A context manager; at its end the earlier handlers are restored. Outside of the main thread,
    where Python allows no handlers, it does nothing.

    Args:
        stop_file: created at the first signal; None: no file.
        on_first: called in the handler of the first signal; must return immediately.
    """

    def __init__(
        self, stop_file: Path | None = None, on_first: Callable[[], object] = nothing
    ) -> None:
        self.stop_file, self.on_first = stop_file, on_first
        self.received: int | None = None
        self._deadline = 0.0
        self._new = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for signum in (signal.SIGINT, signal.SIGTERM) if _in_main_thread() else ():
            self._before[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, _frame: object) -> None:
        if self.received is not None:
            raise Stopped(signum)
        self.received = signum
        self._new = True
        self._deadline = time.monotonic() + STOP_SECONDS
        if self.stop_file is not None:
            with suppress(OSError):  # the run's folder may be gone
                self.stop_file.touch()
        self.on_first()

    @property
    def name(self) -> str:
        """Name of the first signal."""
        return signal.Signals(self.received or signal.SIGINT).name

    def is_new(self) -> bool:
        """Returns True once after the first signal."""
        was_new, self._new = self._new, False
        return was_new

    def check_before_work(self) -> None:
        """Raises `Stopped` after a signal: before any work there is nothing to save."""
        if self.received is not None:
            raise Stopped(self.received)

    def check(self, *, work_has_begun: bool) -> None:
        """Raises `Stopped` after a signal once waiting for a checkpoint is useless.

        Args:
            work_has_begun: whether the workers have something to save; they then have
                `STOP_SECONDS` to do so.
        """
        if self.received is not None and (not work_has_begun or time.monotonic() > self._deadline):
            raise Stopped(self.received)


@contextmanager
def ended_by_sigterm(on_signal: Callable[[], object] = nothing) -> Iterator[None]:
    """Ends a block with `Stopped` at SIGTERM.

    The handler raises a KeyboardInterrupt, the only exception of a handler that Ray lets through
    while it waits. Outside of the main thread there is no handler.

    Args:
        on_signal: called in the handler of the first SIGTERM; must return immediately.
    """
    received: list[int] = []

    def end(signum: int, frame: Any) -> None:
        if not received:
            on_signal()
        received.append(signum)
        raise KeyboardInterrupt

    if not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if received:
            raise Stopped(received[0]) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def skip_cleanup() -> None:
    """Requests that `exit_without_cleanup` ends the process: clean-up would wait for a hung Ray."""
    global _skips_cleanup
    _skips_cleanup = True


def skips_cleanup() -> bool:
    """Returns whether `skip_cleanup` was called."""
    return _skips_cleanup


def exit_without_cleanup(code: int) -> None:
    """Ends the process with an exit code if `skip_cleanup` was called; returns otherwise."""
    if _skips_cleanup:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
