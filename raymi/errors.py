"""The errors that raymi shows to its user without a traceback, and how any other is told."""

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
    """Something that the user can put right: a wrong setting, a missing file, too few CPUs.

    The message says what was expected, what came, and the remedy. Commands print it alone and end
    with exit code 2; everything else is a defect of ours and keeps its traceback.
    """


class StorageError(RuntimeError):
    """What a run keeps cannot be written: a full disk, a folder that is gone.

    The message says what could not be written, where and why, what is left, and the remedy.
    Commands print it alone and end with exit code 1: the run failed, and can be continued.
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
    errno.ESTALE: "its storage is away, bring it back",
    errno.EMFILE: "too many files are open, raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open, close other programs",
}


def storage_remedy(error: OSError) -> str:
    """Returns what a user can do about a file that cannot be read or written."""
    return _REMEDIES.get(error.errno or 0, "make it readable and writable")


def is_fault_of_storage(error: OSError) -> bool:
    """Returns whether a disk, a permission or a path of the user causes an error.

    A missing file is not among them: where raymi does not refuse it, that is a defect of raymi.
    """
    named = error.filename is not None or error.errno in _SPACE
    return named and error.errno in _REMEDIES


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A short remedy for a misspelt name: what is close, or else everything there is."""
    names = list(known)
    close = difflib.get_close_matches(word[:LONGEST_VALUE].lower(), names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What an error says, for the middle of a sentence: of a message that may have pages, at most
    200 characters."""
    lines = str(error).splitlines() or [""]
    return lines[0][:200]


def what_happened(error: BaseException) -> str:
    """Returns a caught error and the line that it came from: the user's own, where one is involved,
    or else the one that called torch. A UserError prints no traceback."""
    import torch

    hidden = (*_IMPORTING, os.path.join(os.path.dirname(torch.__file__), ""))
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without the function that caught it
    others = [frame for frame in frames if not frame.filename.startswith(hidden)]
    theirs = [frame for frame in others if not frame.filename.startswith(_LIBRARIES)]
    place = next((found[-1] for found in (theirs, others) if found), None)
    where = f" ({place.filename}:{place.lineno})" if place else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
