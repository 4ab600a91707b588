"""Where raymi keeps what it downloads and decodes, and arrays that are computed once per node."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from raymi.files import atomic_file
from raymi.local_paths import local_path


def cache_folder() -> Path:
    """Returns `$RAYMI_CACHE`, or `~/.cache/raymi`; all of it can be deleted at any time."""
    return local_path(os.environ.get("RAYMI_CACHE") or "~/.cache/raymi", "RAYMI_CACHE")


def data_folder() -> Path:
    """Where data sets are looked for and downloaded to: `$RAYMI_DATA`, or `data` in the cache."""
    return local_path(os.environ.get("RAYMI_DATA") or cache_folder() / "data", "RAYMI_DATA")


@contextlib.contextmanager
def locked_if_writable(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for other processes; no lock where none can be made.

    The caller must be correct without the lock too: it saves work, it does not protect data.
    """
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path))
        yield


def cached_array(key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """What `compute()` returns, from the cache where it was computed before.

    Several processes that ask at once compute once. A cache that cannot be written or read is no
    error: the array is computed.

    Args: key, a file name that changes whenever the result would.
    Returns: the array; from the cache it is mapped copy-on-write, so processes share its memory.
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
