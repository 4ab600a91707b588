"""Watch over the head of Ray.

Ray itself ends a driver, without a message or clean-up, once the head was unreachable for
`RAY_gcs_rpc_server_reconnect_timeout_s`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PROBE_SECONDS = 2.0  # between two probes
_ANSWER_SECONDS = 5.0  # for an answer to one
LOST_SECONDS = 30.0
"""Seconds after which an unreachable head counts as lost; a restarted one is back before."""

_watch: _Watch | None = None


class RayLost(RuntimeError):
    """Loss of the head of the Ray that a command uses."""


@contextmanager
def watch() -> Iterator[None]:
    """Watches the head of the Ray to which this process is connected."""
    global _watch
    import ray

    _watch = _Watch(ray.get_runtime_context().gcs_address)
    _watch.start()
    try:
        yield
    finally:
        _watch.ended.set()
        _watch = None


def head_lost() -> bool:
    """Returns whether the head of the Ray in use is lost."""
    return _watch is not None and _watch.lost


def check() -> None:
    """Checks that the head of the Ray in use, if any, is not lost.

    Raises:
        RayLost: It was unreachable for `LOST_SECONDS`.
    """
    if _watch is not None and time.monotonic() - _watch.last_answer > LOST_SECONDS:
        raise _watch.loss()


def check_after_error() -> None:
    """Checks after an error that the head is reachable.

    Raises:
        RayLost: It is not.
    """
    if _watch is not None and not _watch.probe():
        raise _watch.loss()


class _Watch(threading.Thread):
    """Thread that probes the head at intervals."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True, name="ray-watch")
        self.address, self.ended, self.lost = address, threading.Event(), False
        self.last_answer = time.monotonic()

    def run(self) -> None:
        while not self.ended.wait(_PROBE_SECONDS):
            self.probe()

    def probe(self) -> bool:
        """Returns whether the head is reachable."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
        except OSError:
            return False
        self.last_answer = time.monotonic()
        return True

    def loss(self) -> RayLost:
        """Records the loss; returns its error."""
        self.lost = True
        return RayLost(
            f"the head of Ray at {self.address} does not answer: its processes or its machine have "
            "ended; start the cluster again"
        )
