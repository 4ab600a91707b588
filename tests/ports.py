"""TCP ports for servers that tests start."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

_RANGE = range(20_000, 32_000)
"""Above the ports of Ray's workers, below those that Linux gives to outgoing connections."""

_reserved: list[IO[str]] = []


def free_ports(num: int) -> list[int]:
    """Reserves ports of this machine, until the process ends, against all other tests.

    A port that is only looked up can be given away again before its server listens.
    """
    folder = Path(tempfile.gettempdir()) / f"raymi-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    ports: list[int] = []
    for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
        if len(ports) == num:
            return ports
        lock = (folder / str(port)).open("w")
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("", port))
            _reserved.append(lock)
            ports.append(port)
            continue
        lock.close()
    raise AssertionError(f"no {num} free ports in {_RANGE}")
