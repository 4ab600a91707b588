"""The one error that raymi shows to its user without a traceback, and the remedy for a typo."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


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


def storage_remedy(error: OSError) -> str:
    """What a user does about a file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free space there"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file is where a folder should be, move it away"
    return "make it writable again"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A short remedy for a misspelt name: what is close, or else everything there is."""
    names = list(known)
    close = difflib.get_close_matches(word.lower(), names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
