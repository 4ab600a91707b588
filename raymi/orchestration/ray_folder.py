"""Private, short folder of a local Ray, which is removed however its driver ends.

Ray puts sockets into its folder, and the system limits the length of a socket's path. It makes the
folder itself writable for all users of the machine: here it is inside one of the user alone.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raymi.errors import UserError
from raymi.orchestration import ray_guard
from raymi.orchestration.ending import ends_at_once

_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # most of a socket's path
_BELOW = len("/raymi-12345678/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
_GUARD_SECONDS = 15.0  # that the guard may take to clean up


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yields the folder for a local Ray; a guard process removes it and Ray's processes at the end.

    Raises:
        UserError: No folder with a short path can be written.
    """
    folder = _make()
    lock = _lock(folder)
    try:
        guard = _start_guard(folder, lock)
        try:
            yield folder / ray_guard.INSIDE
        finally:
            # Ray ends a process that still connects when its raylet goes: the guard waits for it
            if not ends_at_once():
                _dismiss(guard)
    finally:
        os.close(lock)


def bases() -> list[Path]:
    """Returns the folders for temporary files, the user's own choice first."""
    own = [os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR")]
    named = [*own, "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"]
    return [Path(name).absolute() for name in dict.fromkeys(named) if name]


def _make() -> Path:
    most = _SOCKET_BYTES - _BELOW
    refused = []
    for base in bases():
        if len(os.fsencode(base)) > most:
            refused.append(f"{base}: longer than {most} characters")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix=ray_guard.PREFIX, dir=base))  # mode 700
        except OSError as error:
            refused.append(f"{base}: {error.strerror}")
    raise UserError(
        f"Ray needs a folder that it can write, with a path of at most {most} characters; tried "
        f"{'; '.join(refused)}: set RAY_TMPDIR=FOLDER to such a one"
    )


def _lock(folder: Path) -> int:
    """Returns the open lock of a folder; it has its name only once it is locked."""
    path = folder / f"{ray_guard.LOCK}.new"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    path.rename(folder / ray_guard.LOCK)
    return lock


def _start_guard(folder: Path, lock: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, ray_guard.__file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",  # the user's may be removed
        pass_fds=(lock,),
        start_new_session=True,  # Ctrl-C is meant for the driver
    )


def _dismiss(guard: subprocess.Popen[bytes]) -> None:
    """Lets a guard clean up; it finishes by itself where that takes long."""
    assert guard.stdin is not None
    with suppress(OSError):
        guard.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        guard.wait(_GUARD_SECONDS)
