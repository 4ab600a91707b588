"""Files that are whole or not there, and locks that name their holder's place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raymi.errors import StorageError, UserError, storage_remedy
from raymi.formatting import shown


class InUse(UserError):
    """Another process is at it."""


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
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """What has come into a folder, or gone from it, stays so also after a power cut.

    Raises: OSError.
    """
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def keep(path: Path, data: bytes, what_is_left: str = "") -> None:
    """Writes a file atomically, and makes its folder where it is not there.

    Args: path; data; what_is_left, to be said where it cannot be written.
    Raises: StorageError with the remedy.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise not_writable(path, error, what_is_left) from None


def keep_json(path: Path, tree: Any, what_is_left: str = "") -> None:
    """Writes a tree of JSON's types, for people to read, too; see `keep`.

    Raises: StorageError with the remedy.
    """
    keep(path, json.dumps(tree, indent=2).encode(), what_is_left)


def not_writable(path: Path, error: OSError, what_is_left: str = "") -> StorageError:
    """The error of a command that cannot write a path."""
    left = f": {what_is_left}" if what_is_left else ""
    return StorageError(
        f"cannot write {path} ({error.strerror or error}): {storage_remedy(error)}, then give the "
        f"same command again{left}"
    )


def not_readable(path: Path, error: OSError) -> UserError:
    """Returns the error of a command that cannot read a path."""
    return UserError(
        f"cannot read {path} ({error.strerror or error}): {storage_remedy(error)}, then give the "
        "same command again"
    )


def user_path(text: str | Path) -> Path:
    """Returns the absolute path of a name that a user gave.

    Raises: UserError where ~NAME names no user, or the name cannot be that of a file.
    """
    if "\0" in str(text):
        raise UserError(f"expected the name of a file or folder, got {shown(str(text))}")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise UserError(
            f"{shown(str(text))}: there is no such user's home, write the whole path"
        ) from None


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
    Raises: InUse in the second one; StorageError where the lock cannot be made.
    """
    held = FileLock(lock, timeout=wait)
    try:
        held.acquire()
    except Timeout:
        raise InUse(refusal) from None
    except OSError as error:
        raise not_writable(lock, error) from None
    try:
        yield
    finally:
        held.release()
