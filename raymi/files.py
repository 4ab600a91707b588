"""Files that are complete or missing, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from raymi.errors import StorageError, UserError, storage_remedy


class InUse(UserError):
    """Another process is at it."""


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Writes a file that is complete under its name, or not there: also after a power cut.

    Raises:
        OSError: It cannot be written; an earlier one is untouched then.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name once it is complete and on disk.

    Until then it is locked; unlocked ones of the same name are removed, as their writers were
    killed.

    Raises:
        OSError: It cannot be written; an earlier one is untouched then.
    """
    _remove_unused(path.parent, f".{path.name}.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _new_locked_file(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)  # before it is unlocked: another process would remove it
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _new_locked_file(path: Path) -> BinaryIO:
    """Opens a new file for writing that `_remove_unused` leaves alone until it is closed."""
    while True:
        file = path.open("wb")
        try:
            if _lock(file.fileno()) and _is_at(path, file.fileno()):
                return file
        except OSError:  # a file system without locks, on which no file is removed either
            return file
        file.close()  # another process removes it, which was not locked yet


def remove_half_written(folder: Path) -> None:
    """Removes files in a folder and those below whose writers were killed while they wrote.

    Folders below that have a `.lock` of their own are left out.
    """
    for place, below, _ in os.walk(folder):
        _remove_unused(Path(place), ".")
        below[:] = [name for name in below if not os.path.exists(f"{place}/{name}/.lock")]


def _remove_unused(folder: Path, start: str) -> None:
    """Removes temporary files of `atomic_file` that no process writes, where permitted."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if not (name.startswith(start) and name.endswith(".tmp")):
                continue
            with suppress(OSError), (folder / name).open("rb+") as file:
                if _lock(file.fileno()) and _is_at(folder / name, file.fileno()):
                    (folder / name).unlink()


def _lock(file: int) -> bool:
    """Locks an open file until it is closed; returns whether no other process has it locked.

    Raises:
        OSError: The file system has no locks.
    """
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _is_at(path: Path, file: int) -> bool:
    """Returns whether an open file still has its name, and no other file has it."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


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


def save(path: Path, data: bytes, what_is_left: str = "") -> None:
    """Writes a file atomically, and makes its folder where it is not there.

    Args: path; data; what_is_left, to be said where it cannot be written.
    Raises: StorageError with the remedy.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise not_writable(path, error, what_is_left) from None


def save_json(path: Path, tree: Any, what_is_left: str = "") -> None:
    """Writes a tree of JSON's types, for people to read, too; see `save`.

    Raises: StorageError with the remedy.
    """
    save(path, json.dumps(tree, indent=2).encode(), what_is_left)


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


def checksum(data: bytes | memoryview) -> str:
    """The first 16 digits of the sha256 of a file's content, for its name."""
    return hashlib.sha256(data).hexdigest()[:16]


def is_whole(path: Path, data: bytes) -> bool:
    """Whether the name of a file ends in the checksum of its content, before the suffix."""
    return checksum(data) == path.stem[-16:]


@contextmanager
def file_lock(lock: Path, refusal: str, wait: float = 0.0) -> Iterator[None]:
    """Keeps other processes out while one is inside.

    Args:
        lock: a file that is made, and stays.
        refusal: message of the error in the second process.
        wait: seconds to wait for the first process to leave.

    Raises:
        InUse: in the second process.
        UserError: where the user may not lock the file.
        StorageError: where the disk does not take it.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock, timeout=wait)
    try:
        held.acquire()
    except Timeout:
        raise InUse(refusal) from None
    except OSError as error:
        raise _not_locked(lock, error) from None
    try:
        remove_half_written(lock.parent)
        yield
    finally:
        held.release()


def _not_locked(lock: Path, error: OSError) -> UserError | StorageError:
    """Returns the error of a command that cannot lock a file, with the remedy."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        return UserError(
            f"cannot lock {lock} ({reason}): its file system has no locks, use a folder on another "
            "one"
        )
    owner = _owner(lock)
    if owner is not None:
        return UserError(
            f"cannot lock {lock} ({reason}): it belongs to the user {owner}, who may be using the "
            "folder: use a folder of your own, or ask them for write permission"
        )
    return not_writable(lock, error)


def _owner(path: Path) -> str | None:
    """Returns the name or number of another user to whom a file belongs; None: it does not."""
    try:
        number = path.stat().st_uid
    except OSError:
        return None
    if number == os.geteuid():
        return None
    try:
        return path.owner()
    except KeyError:
        return str(number)
