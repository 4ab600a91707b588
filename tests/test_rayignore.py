"""What `ray job submit --working-dir .` takes along."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_job_takes_the_package_along_and_nothing_that_runs_leave_behind():
    pathspec = pytest.importorskip("pathspec")  # Ray reads the file with it
    lines = (ROOT / ".rayignore").read_text().splitlines()
    ignored = pathspec.PathSpec.from_lines("gitwildmatch", lines).match_file
    files = [path for name in ("raymi", "tune_spaces") for path in (ROOT / name).rglob("*.*")]
    assert len(files) > 150
    left = [path for path in files if ignored(str(path.relative_to(ROOT)))]
    assert left == []
    for path in (
        "runs/a/journal.jsonl",
        "sweeps/a/study.db",
        "reports/a/index.html",
        "mlflow.db",
        "data/x.bin",
        ".git/a",
    ):
        assert ignored(path)
