"""Paths of settings. Addresses such as `s3://...` are refused: they would become local folders."""

from __future__ import annotations

import re
from pathlib import Path

from raymi.errors import UserError
from raymi.formatting import shown

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a `Path` has kept one slash of the two


def address_problem(path: str | Path) -> str | None:
    """Returns what is wrong with a path that is an address, and the remedy; None for a path."""
    if _ADDRESS.match(str(path)) is None:
        return None
    return (
        f"expected a path on this machine or on mounted storage, got the address "
        f"{shown(str(path))}: raymi does not read or write addresses; mount the storage and give "
        "its path"
    )


def local_path(path: str | Path, key: str = "") -> Path:
    """Returns the absolute path of a name that a user gave.

    Args:
        path: name of a file or folder; `~` stands for the home.
        key: setting that it was given for, named in the error; empty: none.

    Raises:
        UserError: It is an address such as `s3://bucket/folder`, no name of a file, or the home of
            an unknown user.
    """
    text, prefix = str(path), f"{key}: " if key else ""
    if problem := address_problem(text):
        raise UserError(f"{prefix}{problem}")
    if "\0" in text:
        raise UserError(f"{prefix}expected the name of a file or folder, got {shown(text)}")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise UserError(
            f"{prefix}{shown(text)}: there is no such user's home, write the whole path"
        ) from None
