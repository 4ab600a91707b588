"""Folder of a report, known by the record in it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from raymi.errors import UserError

PAGE = "index.html"
RECORD = "report.json"


def check_folder(folder: Path) -> None:
    """Refuses a folder that contains something else than a report.

    Raises:
        UserError: it has other files.
    """
    if not folder.is_dir() or (folder / RECORD).is_file():
        return
    if any(folder.iterdir()):
        raise UserError(
            f"{folder} has files that are not a report: set out=FOLDER to a new folder, or to that "
            "of a report, which is replaced"
        )


def files_of(folder: Path) -> list[str]:
    """Returns the names of the files of an earlier report."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        named = json.loads((folder / RECORD).read_text())["files"]
        return [name for name in named if Path(name).name == name and (folder / name).is_file()]
    return []
