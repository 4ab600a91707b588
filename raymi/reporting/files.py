"""The folder of a report: the page, pictures for print, tables to paste."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from raymi.errors import UserError
from raymi.files import save, save_json
from raymi.reporting.look import FORMATS
from raymi.reporting.page import Contents, as_html
from raymi.reporting.table import as_latex, as_markdown

PAGE = "index.html"
_RECORD = "report.json"


def check_folder(folder: Path) -> None:
    """Refuses a folder in which there is something else than a report.

    Raises: UserError.
    """
    if not folder.is_dir() or (folder / _RECORD).is_file():
        return
    if any(folder.iterdir()):
        raise UserError(
            f"{folder} has files and is no report: give out=FOLDER, a new one or that of a report, "
            "which is replaced"
        )


def write_report(folder: Path, contents: Contents) -> list[Path]:
    """Writes everything, in place of the report that the folder had.

    Returns: the files, the page last.
    Raises: StorageError where one cannot be written.
    """
    before = _files_of(folder)
    files: dict[str, bytes] = {
        f"{picture.name}.{kind}": picture.as_bytes(kind)
        for picture in contents.pictures
        for kind in FORMATS
    }
    if contents.tables:
        files["tables.md"] = as_markdown(contents.tables).encode()
        files["tables.tex"] = as_latex(contents.tables).encode()
    files[PAGE] = as_html(contents).encode()
    names = [_RECORD, *files]
    record = {
        "title": contents.title,
        "command": contents.command,
        "runs": [run.history.name for run in contents.runs],
        "files": names,
        "tables": [table.as_json() for table in contents.tables],
        "notes": contents.notes,
    }
    save_json(
        folder / _RECORD, {**record, "files": [*names, *before]}
    )  # both, while it is replaced
    for name, data in files.items():
        save(folder / name, data)
    for name in set(before) - set(names):
        (folder / name).unlink(missing_ok=True)
    save_json(folder / _RECORD, record)
    return [folder / name for name in names]


def _files_of(folder: Path) -> list[str]:
    """Names of the files that an earlier report has made."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        named = json.loads((folder / _RECORD).read_text())["files"]
        return [name for name in named if Path(name).name == name and (folder / name).is_file()]
    return []
