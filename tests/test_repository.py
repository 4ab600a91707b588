"""Tracked files: what is in the repository and what must not be."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_BYTES = 1_000_000
EXPECTED = {
    ".ci",
    ".github",
    ".gitignore",
    ".pre-commit-config.yaml",
    ".rayignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "cluster",
    "docs",
    "examples",
    "mkdocs.yml",
    "pyproject.toml",
    "raymi",
    "studies",
    "tests",
    "tune_spaces",
}
"""Entries that the root may have."""


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Tracked files, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout (an archive, say): tracked files are unknown")
    listing = _git("ls-files", "-z")
    assert listing.returncode == 0, listing.stderr
    files = [Path(name) for name in listing.stdout.split("\0") if name]
    assert Path("raymi/__init__.py") in files
    return [file for file in files if (ROOT / file).exists()]  # not those just removed


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)


def test_the_root_has_expected_entries_only(tracked: list[Path]) -> None:
    unexpected = sorted({file.parts[0] for file in tracked} - EXPECTED)
    assert not unexpected, "move them into a folder, or add them to EXPECTED"


def test_no_tracked_file_is_larger_than_1_mb(tracked: list[Path]) -> None:
    sizes = {str(file): (ROOT / file).lstat().st_size for file in tracked}
    assert {file: size for file, size in sizes.items() if size > MAX_BYTES} == {}


@pytest.mark.parametrize("path", ["raymi-0.1.0-py3-none-any.whl", "cluster/torch.whl"])
def test_git_ignores_wheels(tracked: list[Path], path: str) -> None:
    assert _git("check-ignore", "--quiet", path).returncode == 0
    assert Path(path) not in tracked


def test_contributing_lists_all_files_with_exhaustive_tests() -> None:
    tests = ROOT / "tests"
    marked = {
        str(file.relative_to(tests))
        for file in tests.rglob("test_*.py")
        if re.search(r"pytest\.mark\.exhaustive\b", file.read_text()) and file != Path(__file__)
    }
    listed = re.findall(r"`([\w/]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert {name for name in listed if name.rpartition("/")[2].startswith("test_")} == marked
