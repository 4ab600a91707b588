"""Paths of settings. Addresses such as `s3://...` are refused: they would become local folders."""

from __future__ import annotations

import re
from pathlib import Path

from raymi.errors import UserError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a `Path` has kept one slash of the two


def address_problem(path: str | Path) -> str | None:
    """Returns what is wrong with a path that is an address, and the remedy; None for a path."""
    if _ADDRESS.match(str(path)) is None:
        return None
    return (
        f"expected a path on this machine or on mounted storage, got the address {str(path)!r}: "
        "raymi does not read or write addresses; mount the storage and give its path"
    )


def local_path(path: str | Path, key: str) -> Path:
    """Returns an absolute path.

    Args:
        path: What the user gave; `~` stands for the home.
        key: Setting that it was given for, named in the error.

    Raises:
        UserError: It is an address such as `s3://bucket/folder`.
    """
    if problem := address_problem(path):
        raise UserError(f"{key}: {problem}")
    return Path(path).expanduser().absolute()
