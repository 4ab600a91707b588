"""Request to end a command without clean-up at exit, which would wait for a Ray that hangs."""

from __future__ import annotations

import os
import sys

_at_once = False


def end_at_once() -> None:
    """Lets the command of this process end without clean-up, once its results are written."""
    global _at_once
    _at_once = True


def ends_at_once() -> bool:
    """Returns whether `end_at_once` was called."""
    return _at_once


def exit_if_asked(code: int) -> None:
    """Ends the process with an exit code where `end_at_once` was called."""
    if _at_once:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
