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
    """Lock held by another process."""


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Writes a file that is complete or absent, also after power loss.

    Raises:
        OSError: the file cannot be written; an earlier one is untouched.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name once it is complete and on disk.

    Until then it is locked; unlocked temporary files of the same name are removed, as their writers
    were killed.

    Raises:
        OSError: the file cannot be written; an earlier one is untouched.
    """
    _remove_unused(path.parent, f".{path.name}.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _new_locked_file(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)  # while locked: another process would remove it
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _new_locked_file(path: Path) -> BinaryIO:
    """Opens a new file for writing that `_remove_unused` skips until it is closed."""
    while True:
        file = path.open("wb")
        try:
            if _lock(file.fileno()) and _is_at(path, file.fileno()):
                return file
        except OSError:  # no locks on this file system, so no file is removed
            return file
        file.close()  # another process removed it before it was locked


def remove_half_written(folder: Path) -> None:
    """Removes temporary files of killed writers in a folder and its subfolders.

    Subfolders with a `.lock` are skipped.
    """
    for place, below, _ in os.walk(folder):
        _remove_unused(Path(place), ".")
        below[:] = [name for name in below if not os.path.exists(f"{place}/{name}/.lock")]


def _remove_unused(folder: Path, start: str) -> None:
    """Removes temporary files of `atomic_file` that no process is writing, if permitted."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if not (name.startswith(start) and name.endswith(".tmp")):
                continue
            with suppress(OSError), (folder / name).open("rb+") as file:
                if _lock(file.fileno()) and _is_at(folder / name, file.fileno()):
                    (folder / name).unlink()


def _lock(file: int) -> bool:
    """Locks an open file until it is closed; returns False if another process has the lock.

    Raises:
        OSError: the file system has no locks.
    """
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _is_at(path: Path, file: int) -> bool:
    """Returns whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def sync_folder(path: Path) -> None:
    """Makes files added to or removed from a folder durable.

    Raises:
        OSError: the folder cannot be synced.
    """
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: Path, data: bytes, note: str = "") -> None:
    """Writes a file atomically; creates its folder if missing.

    Args:
        path: of the file.
        data: its content.
        note: end of the error message, such as what is not lost.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise not_writable(path, error, note) from None


def save_json(path: Path, tree: Any, note: str = "") -> None:
    """Writes a tree of JSON's types, indented; see `save`.

    Raises:
        StorageError: the file cannot be written.
    """
    save(path, json.dumps(tree, indent=2).encode(), note)


def not_writable(path: Path, error: OSError, note: str = "") -> StorageError:
    """Returns the error of a command that cannot write a path."""
    end = f": {note}" if note else ""
    return StorageError(
        f"cannot write {path} ({error.strerror or error}): {storage_remedy(error)}, then give the "
        f"same command again{end}"
    )


def not_readable(path: Path, error: OSError) -> UserError:
    """Returns the error of a command that cannot read a path."""
    return UserError(
        f"cannot read {path} ({error.strerror or error}): {storage_remedy(error)}, then give the "
        "same command again"
    )


def checksum(data: bytes | memoryview) -> str:
    """Computes the first 16 hexadecimal digits of a content's sha256, for file names."""
    return hashlib.sha256(data).hexdigest()[:16]


def is_whole(path: Path, data: bytes) -> bool:
    """Returns whether a file's name ends, before the suffix, in the checksum of its content."""
    return checksum(data) == path.stem[-16:]


@contextmanager
def file_lock(lock: Path, refusal: str, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock between processes.

    Args:
        lock: path of the lock file, which is created and stays.
        refusal: message of `InUse`.
        wait: seconds to wait for the lock.

    Raises:
        InUse: another process holds the lock.
        UserError: the user may not lock the file.
        StorageError: the disk does not take the file.
    """
    from filelock import FileLock, Timeout

    file = FileLock(lock, timeout=wait)
    try:
        file.acquire()
    except Timeout:
        raise InUse(refusal) from None
    except OSError as error:
        raise _not_locked(lock, error) from None
    try:
        remove_half_written(lock.parent)
        yield
    finally:
        file.release()


def _not_locked(lock: Path, error: OSError) -> UserError | StorageError:
    """Returns the error of a command that cannot lock a file."""
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
    """Returns the name or number of a file's owner; None: this user or unknown."""
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
