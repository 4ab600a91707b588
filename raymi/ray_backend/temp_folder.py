"""Private folder of a local Ray with a short path, removed even after a killed driver.

Ray puts sockets into its folder, and the system limits the length of a socket's path. Ray makes the
folder writable for all users of the machine, so that it needs a private parent.
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
from raymi.ray_backend import cleanup_guard
from raymi.signals import skips_cleanup

_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # limit of a socket's path
_BELOW = len("/raymi-12345678/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
_GUARD_SECONDS = 15.0  # for the guard to clean up


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
            yield folder / cleanup_guard.INSIDE
        finally:
            # Ray ends a process that still connects when its raylet goes: the guard waits for it
            if not skips_cleanup():
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
            return Path(tempfile.mkdtemp(prefix=cleanup_guard.PREFIX, dir=base))  # mode 700
        except OSError as error:
            refused.append(f"{base}: {error.strerror}")
    raise UserError(
        f"Ray needs a writable folder with a path of at most {most} characters; tried "
        f"{'; '.join(refused)}: set RAY_TMPDIR=FOLDER"
    )


def _lock(folder: Path) -> int:
    """Returns the open lock of a folder; the file gets its name once it is locked."""
    path = folder / f"{cleanup_guard.LOCK}.new"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    path.rename(folder / cleanup_guard.LOCK)
    return lock


def _start_guard(folder: Path, lock: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, cleanup_guard.__file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",  # the current folder may be removed
        pass_fds=(lock,),
        start_new_session=True,  # Ctrl-C is meant for the driver
    )


def _dismiss(guard: subprocess.Popen[bytes]) -> None:
    """Lets a guard clean up; does not wait longer than `_GUARD_SECONDS`."""
    assert guard.stdin is not None
    with suppress(OSError):
        guard.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        guard.wait(_GUARD_SECONDS)
