"""Errors that commands print without a traceback, and texts about any other error."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sysconfig
import traceback
from collections.abc import Iterable

from raymi.formatting import LONGEST_VALUE

_IMPORTING = ("<", os.path.join(os.path.dirname(importlib.__file__), ""))  # "<": frozen modules
_LIBRARIES = (
    os.path.join(os.path.dirname(__file__), ""),
    *(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "purelib", "platlib")),
)


class UserError(ValueError):
    """Invalid input that the user can fix: a wrong setting, a missing file, too few CPUs.

    The message says what was expected, what came, and the remedy. Commands print it without a
    traceback and exit with code 2; any other error is a defect of raymi and keeps its traceback.
    """


class StorageError(RuntimeError):
    """Failed write of a run's files: a full disk, a deleted folder.

    The message says what could not be written, where and why, what is left, and the remedy.
    Commands print it without a traceback and exit with code 1: the run failed, and can be resumed.
    """


_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = {
    **dict.fromkeys(_SPACE, "free space there"),
    errno.ENOTDIR: "a file is where a folder should be, move it away",
    errno.EEXIST: "a file is where a folder should be, move it away",
    errno.EISDIR: "a folder is where a file should be, move it away",
    errno.EACCES: "change its permissions, or choose another folder",
    errno.EPERM: "change its permissions, or choose another folder",
    errno.EROFS: "it is on a read-only file system, choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead to themselves, remove them",
    errno.EIO: "its disk is faulty, choose another one",
    errno.ESTALE: "its storage is not mounted, mount it again",
    errno.EMFILE: "too many files are open, raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open, close other programs",
}


def storage_remedy(error: OSError) -> str:
    """Returns the remedy for a file that cannot be read or written."""
    return _REMEDIES.get(error.errno or 0, "make it readable and writable")


def is_fault_of_storage(error: OSError) -> bool:
    """Returns whether a disk, a permission or a path of the user causes an error.

    A missing file is no such fault: where raymi does not refuse it first, that is a defect.
    """
    named = error.filename is not None or error.errno in _SPACE
    return named and error.errno in _REMEDIES


def close_names(word: str, known: Iterable[str], most: int, cutoff: float = 0.5) -> list[str]:
    """Returns at most `most` names that look like a misspelt one, the closest first."""
    return difflib.get_close_matches(word[:LONGEST_VALUE].lower(), list(known), most, cutoff)


def did_you_mean(
    word: str, known: Iterable[str], *, most: int = 3, otherwise: str | None = None
) -> str:
    """Returns the remedy for an unknown name.

    Args:
        word: unknown name.
        known: valid names.
        most: number of close names that are suggested.
        otherwise: text where no name is close; None: the list of all names.
    """
    names = list(known)
    if close := close_names(word, names, most):
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(names)}" if otherwise is None else otherwise


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, cut after 200 characters."""
    lines = str(error).splitlines() or [""]
    return lines[0][:200]


def what_happened(error: BaseException) -> str:
    """Returns a caught error on one line, with the file and line that it came from.

    The line is the innermost one of the user's own code, or else the one that called torch.
    """
    import torch

    hidden = (*_IMPORTING, os.path.join(os.path.dirname(torch.__file__), ""))
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without the function that caught it
    others = [frame for frame in frames if not frame.filename.startswith(hidden)]
    theirs = [frame for frame in others if not frame.filename.startswith(_LIBRARIES)]
    place = next((found[-1] for found in (theirs, others) if found), None)
    where = f" ({place.filename}:{place.lineno})" if place else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
