"""SIGINT and SIGTERM: the first one requests a checkpoint, the second one ends immediately."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STOP_SECONDS = 30.0  # how long a requested stop may take before workers are ended


class Stopped(Exception):
    """The run ended on a signal, with everything up to its last checkpoint kept."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def nothing() -> None:
    """Does nothing."""


class Signals:
    """Handler of SIGINT and SIGTERM: the first requests a stop, the second ends immediately.

    Args:
        stop_file: made at the first signal.
        on_first: called in the handler of the first signal; must return immediately.
    """

    def __init__(self, stop_file: Path, on_first: Callable[[], object] = nothing) -> None:
        self.stop_file, self.on_first = stop_file, on_first
        self.received: int | None = None
        self._deadline = 0.0
        self._new = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
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
        self.on_first()

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


@contextmanager
def ended_by_sigterm(on_signal: Callable[[], object] = nothing) -> Iterator[None]:
    """Lets SIGTERM end a block by a `Stopped`.

    On its way it is a KeyboardInterrupt: while Ray waits, it lets no other exception of a signal's
    handler through.

    Args:
        on_signal: called in the handler of the first SIGTERM; must return immediately.
    """
    received: list[int] = []

    def end(signum: int, frame: Any) -> None:
        if not received:
            on_signal()
        received.append(signum)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if received:
            raise Stopped(received[0]) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
