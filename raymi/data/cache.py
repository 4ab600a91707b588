"""Folders of downloaded and decoded data, and arrays that are computed once per node."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from raymi.files import atomic_file
from raymi.local_paths import local_path


def cache_folder() -> Path:
    """Returns `$RAYMI_CACHE`, or `~/.cache/raymi`; its content can be deleted at any time."""
    return local_path(os.environ.get("RAYMI_CACHE") or "~/.cache/raymi", "RAYMI_CACHE")


def data_folder() -> Path:
    """Returns the folder of downloaded data sets: `$RAYMI_DATA`, or `data` in the cache."""
    return local_path(os.environ.get("RAYMI_DATA") or cache_folder() / "data", "RAYMI_DATA")


@contextlib.contextmanager
def locked_if_writable(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, or no lock where it cannot be created.

    The lock saves work and does not protect data: callers must be correct without it.
    """
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path))
        yield


def cached_array(key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the result of `compute()`, from the cache if it was computed before.

    Concurrent processes compute once. If the cache cannot be read or written, the array is
    computed.

    Args:
        key: file name that is unique to the result.
        compute: function that returns the array.

    Returns:
        The array; a cached one is mapped copy-on-write, so that processes share its memory.
    """
    path = cache_folder() / "decoded" / f"{key}.npy"
    with locked_if_writable(path.with_suffix(".lock")):
        with contextlib.suppress(OSError, ValueError, EOFError):  # absent or damaged: compute
            return np.load(path, mmap_mode="c", allow_pickle=False)
        array = compute()
        with contextlib.suppress(OSError):
            with atomic_file(path) as file:
                np.save(file, array, allow_pickle=False)
        return array
