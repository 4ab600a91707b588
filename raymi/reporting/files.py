"""Writes the files of a report: the page, pictures for print, tables in Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path

from raymi.files import save, save_json
from raymi.reporting.folder import PAGE, RECORD, files_of
from raymi.reporting.page import Report, as_html
from raymi.reporting.style import FORMATS
from raymi.reporting.table import as_latex, as_markdown


def write_report(folder: Path, report: Report) -> list[Path]:
    """Writes a report in place of an earlier one in the folder.

    Returns:
        The files, the page last.

    Raises:
        StorageError: a file cannot be written.
    """
    before = files_of(folder)
    files: dict[str, bytes] = {
        f"{picture.name}.{kind}": picture.as_bytes(kind)
        for picture in report.pictures
        for kind in FORMATS
    }
    if report.tables:
        files["tables.md"] = as_markdown(report.tables).encode()
        files["tables.tex"] = as_latex(report.tables).encode()
    files[PAGE] = as_html(report).encode()
    names = [RECORD, *files]
    record = {
        "title": report.title,
        "command": report.command,
        "runs": [run.history.name for run in report.runs],
        "files": names,
        "tables": [table.as_json() for table in report.tables],
        "notes": report.notes,
    }
    # lists the files of both reports until all are written
    save_json(folder / RECORD, {**record, "files": [*names, *before]})
    for name, data in files.items():
        save(folder / name, data)
    for name in set(before) - set(names):
        (folder / name).unlink(missing_ok=True)
    save_json(folder / RECORD, record)
    return [folder / name for name in names]
