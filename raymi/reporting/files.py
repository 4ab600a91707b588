"""Folder of a report: the page, pictures for print, and tables in Markdown and LaTeX."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from raymi.errors import UserError
from raymi.files import save, save_json
from raymi.reporting.page import Report, as_html
from raymi.reporting.style import FORMATS
from raymi.reporting.table import as_latex, as_markdown

PAGE = "index.html"
_RECORD = "report.json"


def check_folder(folder: Path) -> None:
    """Refuses a folder that contains something else than a report.

    Raises:
        UserError: it has other files.
    """
    if not folder.is_dir() or (folder / _RECORD).is_file():
        return
    if any(folder.iterdir()):
        raise UserError(
            f"{folder} has files that are not a report: set out=FOLDER to a new folder, or to that "
            "of a report, which is replaced"
        )


def write_report(folder: Path, report: Report) -> list[Path]:
    """Writes a report in place of an earlier one in the folder.

    Returns:
        The files, the page last.

    Raises:
        StorageError: a file cannot be written.
    """
    before = _files_of(folder)
    files: dict[str, bytes] = {
        f"{picture.name}.{kind}": picture.as_bytes(kind)
        for picture in report.pictures
        for kind in FORMATS
    }
    if report.tables:
        files["tables.md"] = as_markdown(report.tables).encode()
        files["tables.tex"] = as_latex(report.tables).encode()
    files[PAGE] = as_html(report).encode()
    names = [_RECORD, *files]
    record = {
        "title": report.title,
        "command": report.command,
        "runs": [run.history.name for run in report.runs],
        "files": names,
        "tables": [table.as_json() for table in report.tables],
        "notes": report.notes,
    }
    # lists the files of both reports until all are written
    save_json(folder / _RECORD, {**record, "files": [*names, *before]})
    for name, data in files.items():
        save(folder / name, data)
    for name in set(before) - set(names):
        (folder / name).unlink(missing_ok=True)
    save_json(folder / _RECORD, record)
    return [folder / name for name in names]


def _files_of(folder: Path) -> list[str]:
    """Returns the names of the files of an earlier report."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        named = json.loads((folder / _RECORD).read_text())["files"]
        return [name for name in named if Path(name).name == name and (folder / name).is_file()]
    return []
