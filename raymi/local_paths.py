"""Local paths in settings; addresses such as `s3://...` are refused."""

from __future__ import annotations

import re
from pathlib import Path

from raymi.errors import UserError
from raymi.formatting import shown

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # `Path` drops one of the slashes


def address_problem(path: str | Path) -> str | None:
    """Returns the problem of an address in place of a path, and the remedy; None: a path."""
    if _ADDRESS.match(str(path)) is None:
        return None
    return (
        f"expected a path on this machine or on mounted storage, got the address "
        f"{shown(str(path))}: raymi does not read or write addresses; mount the storage and give "
        "its path"
    )


def local_path(path: str | Path, key: str = "") -> Path:
    """Returns the absolute path of a file or folder that the user named.

    Args:
        path: of the file or folder; `~` is the home folder.
        key: name of the setting, for the error; empty: none.

    Raises:
        UserError: the path is an address such as `s3://bucket/folder`, no name of a file, or in the
            home folder of an unknown user.
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
            f"{prefix}{shown(text)}: no such user's home folder: write the whole path"
        ) from None
