"""Files that `ray job submit --working-dir .` uploads, by Ray's own reading of the ignore files."""

from __future__ import annotations

from pathlib import Path

import pytest
from uploaded_files import ROOT, is_uploaded, uploaded_files


def test_a_job_gets_the_whole_package_and_all_search_spaces() -> None:
    files = [path for name in ("raymi", "tune_spaces") for path in (ROOT / name).rglob("*.*")]
    source = [path.relative_to(ROOT) for path in files if "__pycache__" not in path.parts]
    assert len(source) > 150
    assert set(source) <= set(uploaded_files("raymi", "tune_spaces"))


@pytest.mark.parametrize(
    "path",
    [
        "runs/a/journal.jsonl",
        "sweeps/a/study.db",
        "evaluations/a/ledger.jsonl",
        "reports/a/index.html",
        "mlruns/0/meta.yaml",
        "mlflow.db",
        "data/x.bin",
        ".git/a",
        ".venv/bin/python",
        "tests/test_rayignore.py",
        "studies/search/results/search.json",
        "raymi-0.1.0-py3-none-any.whl",
        "cluster/torch.whl",
    ],
)
def test_a_job_gets_no_outputs_environments_tests_or_wheels(path: str) -> None:
    assert not is_uploaded(Path(path), ".rayignore")


@pytest.mark.parametrize("path", ["studies/search/measure.py", "cluster/README.md", "mine.toml"])
def test_a_job_gets_what_no_line_names(path: str) -> None:
    assert is_uploaded(Path(path), ".rayignore")
