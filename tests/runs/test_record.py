"""The record of a run: warnings of several runs together."""

from __future__ import annotations

from pathlib import Path

from raymi.runs.journal import Journal
from raymi.runs.record import warning_lines
from raymi.runs.run_folder import RunFolder


def run_with_warnings(path: Path, *messages: str) -> RunFolder:
    folder = RunFolder(path)
    journal = Journal(folder.journal)
    for message in messages:
        journal.write("warning", message=message)
    journal.close()
    return folder


def test_a_warning_of_several_runs_is_one_line_with_their_number(tmp_path: Path) -> None:
    first = run_with_warnings(tmp_path / "a", "MI dominates", "MI dominates", "copies")
    second = run_with_warnings(tmp_path / "b", "copies")
    silent = RunFolder(tmp_path / "c")
    assert warning_lines([first, second, silent]) == [
        "warning in 1 of 3 runs: MI dominates",
        "warning in 2 of 3 runs: copies",
    ]
