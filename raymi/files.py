"""Files that are whole or not there, and locks that name their holder's place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from raymi.errors import UserError


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """A file that is complete under its name, or not there: also after a power cut.

    Raises: OSError where it cannot be written; what was there is untouched then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def checksum(data: bytes | memoryview) -> str:
    """The first 16 digits of the sha256 of a file's content, for its name."""
    return hashlib.sha256(data).hexdigest()[:16]


def is_whole(path: Path, data: bytes) -> bool:
    """Whether the name of a file ends in the checksum of its content, before the suffix."""
    return checksum(data) == path.stem[-16:]


@contextmanager
def alone(lock: Path, refusal: str, wait: float = 0.0) -> Iterator[None]:
    """Keeps other processes out while one is inside.

    Args: lock, a file that is made; refusal, what the second one is told; wait, seconds to wait for
        the first one to leave.
    Raises: UserError in the second one.
    """
    held = FileLock(lock, timeout=wait)
    try:
        held.acquire()
    except Timeout:
        raise UserError(refusal) from None
    try:
        yield
    finally:
        held.release()
