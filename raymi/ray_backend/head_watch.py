"""Watch over the head of Ray, whose loss ends a driver without a word if it is not noticed before.

Ray's own code ends the process, without any clean-up, once the head was out of reach for
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
"""Seconds out of reach after which a head counts as lost; a restarted one is back before."""

_watch: _Watch | None = None


class RayLost(RuntimeError):
    """Loss of the head of the Ray that a command uses."""


@contextmanager
def watching() -> Iterator[None]:
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


def is_lost() -> bool:
    """Returns whether the head of the Ray in use is lost."""
    return _watch is not None and _watch.lost


def check() -> None:
    """Checks that the head of the Ray in use, if any, is not lost.

    Raises:
        RayLost: It was out of reach for `LOST_SECONDS`.
    """
    if _watch is not None and time.monotonic() - _watch.reached > LOST_SECONDS:
        raise _watch.loss()


def check_after_an_error() -> None:
    """Checks whether the loss of the head can have caused an error.

    Raises:
        RayLost: It is out of reach now.
    """
    if _watch is not None and not _watch.probe():
        raise _watch.loss()


class _Watch(threading.Thread):
    """Thread that connects to the head again and again."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True, name="ray-watch")
        self.address, self.ended, self.lost = address, threading.Event(), False
        self.reached = time.monotonic()

    def run(self) -> None:
        while not self.ended.wait(_PROBE_SECONDS):
            self.probe()

    def probe(self) -> bool:
        """Returns whether the head can be reached."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
        except OSError:
            return False
        self.reached = time.monotonic()
        return True

    def loss(self) -> RayLost:
        """Notes the loss, and returns its error."""
        self.lost = True
        return RayLost(
            f"the head of Ray at {self.address} does not answer any more: its processes or its "
            "machine have ended; start the cluster again"
        )
