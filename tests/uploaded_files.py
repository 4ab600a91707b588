"""Files of the checkout that Ray uploads as the working folder of a job."""

from __future__ import annotations

from pathlib import Path

from ray._private.thirdparty.pathspec import PathSpec  # with which Ray reads both files

ROOT = Path(__file__).parents[1]
IGNORE_FILES = (".gitignore", ".rayignore")


def is_uploaded(path: Path, *ignore_files: str) -> bool:
    """Returns whether no line of the ignore files matches a path.

    Args:
        path: relative to the root of the checkout.
        ignore_files: names of the files to read; none: all that Ray reads.
    """
    return not any(
        PathSpec.from_lines("gitwildmatch", (ROOT / name).read_text().splitlines()).match_file(path)
        for name in ignore_files or IGNORE_FILES
    )


def uploaded_files(*folders: str) -> list[Path]:
    """Returns the files below folders of the checkout that are uploaded, relative to its root."""
    found = (file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file())
    return [path for path in (file.relative_to(ROOT) for file in found) if is_uploaded(path)]
