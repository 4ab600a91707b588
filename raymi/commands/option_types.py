"""Parsers of command options that are not part of `Config`.

Each function takes a key and its text, and appends a line to `problems` for each problem, so that a
user sees all of them together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

from raymi.errors import UserError, storage_remedy
from raymi.formatting import shortened, shown
from raymi.local_paths import local_path

Default = TypeVar("Default", int, None)

_MOST_SEEDS = 10_000
_MOST = 10**9
_DIGITS = 19


def whole(
    key: str, text: str | None, default: Default, problems: list[str], least: int = 1
) -> int | Default:
    """Parses a whole number.

    Args:
        key: name of the option.
        text: text of the option; None: not given.
        default: value if it is not given or wrong.
        problems: list of problems.
        least: smallest valid number.
    """
    if text is None:
        return default
    if _is_whole(text) and least <= int(text) <= _MOST:
        return int(text)
    too_large = text.isdecimal() and len(text.lstrip("0")) >= len(str(_MOST))
    most = f" and <= {_MOST}" if too_large else ""
    problems.append(f"{key}: expected whole number >= {least}{most}, got {shown(text)}")
    return default


def names(key: str, text: str | None, problems: list[str]) -> tuple[str, ...]:
    """Parses comma-separated names, at least one, each once; returns () for no text."""
    if text is None:
        return ()
    given = [part.strip() for part in text.split(",") if part.strip()]
    if not given:
        problems.append(f"{key}: expected names with commas between them, got {shown(text)}")
    counts = Counter(given)
    problems += [f"{key}: {shortened(name)} is given twice" for name in counts if counts[name] > 1]
    return tuple(counts)


def seed_list(key: str, text: str, problems: list[str]) -> tuple[int, ...]:
    """Parses seeds: `0..2` as (0, 1, 2), `0,5` as (0, 5), or both; returns () if invalid."""
    seeds: list[int] = []
    for part in text.split(","):
        low, dots, high = (word.strip() for word in part.partition(".."))
        bounds = [low, high if dots else low]
        if not all(map(_is_whole, bounds)):
            problems.append(f"{key}: expected 0..9 or 0,1,2, got {shown(text)}")
            return ()
        if int(bounds[0]) > int(bounds[1]):
            problems.append(f"{key}: expected the smaller one first, got {shown(text)}")
            return ()
        if int(bounds[1]) - int(bounds[0]) >= _MOST_SEEDS:
            problems.append(f"{key}: expected at most {_MOST_SEEDS} seeds, got {shown(text)}")
            return ()
        seeds += range(int(bounds[0]), int(bounds[1]) + 1)
    if len(set(seeds)) < len(seeds):
        problems.append(f"{key}: a seed is given twice in {shown(text)}")
    return tuple(seeds)


def new_file(key: str, text: str | None, problems: list[str]) -> Path | None:
    """Parses the path of a file that can be written; returns None for no text."""
    if not text:
        return None
    if (path := _path(key, text, problems)) is None:
        return None
    if not path.parent.is_dir():
        problems.append(f"{key}: no folder {path.parent}: make it, or give another file")
    elif path.is_dir():
        problems.append(f"{key}: {path} is a folder: give a file in it")
    elif not _is_writable(path.parent):
        problems.append(f"{key}: no permission to write into {path.parent}: give another file")
    return path


def new_folder(key: str, text: str | None, default: Path, problems: list[str]) -> Path:
    """Parses the path of a folder that exists or can be made; returns the default for no text."""
    if (path := _path(key, text or default, problems)) is None:
        return default
    existing = next(place for place in (path, *path.parents) if os.path.exists(place))
    if not existing.is_dir():
        problems.append(f"{key}: {existing} is not a folder: give another one")
    elif not _is_writable(existing):
        problems.append(f"{key}: no permission to write into {existing}: give another folder")
    return path


def existing_folder(key: str, text: str, problems: list[str]) -> Path | None:
    """Parses the path of a folder that exists."""
    path = _path(key, text, problems)
    if path is not None and not path.is_dir():
        problems.append(f"{key}: no folder {path}: give an existing one")
    return path


def with_json(words: Sequence[str], problems: list[str]) -> list[str]:
    """Returns the words of a command line with `--json FILE` as one word, `json=FILE`."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--json" and "=" not in word:
            joined[-1] = f"json={word}"
        else:
            joined.append(word)
    if "--json" in joined:
        problems.append("--json: expected a file after it: --json FILE")
    return [word for word in joined if word != "--json"]


def _path(key: str, text: str | Path, problems: list[str]) -> Path | None:
    """Returns a user's path as a local path; None if it is invalid."""
    try:
        path = local_path(text)
        os.path.lexists(path)
        path.is_dir()
    except UserError as error:
        problems.append(f"{key}: {error}")
    except OSError as error:
        problems.append(f"{key}: {shown(str(text))}: {error.strerror}: {storage_remedy(error)}")
    else:
        return path
    return None


def _is_whole(text: str) -> bool:
    return text.isdecimal() and text.isascii() and len(text.lstrip("0")) < _DIGITS


def _is_writable(folder: Path) -> bool:
    """Returns whether a file can be made in a folder; permissions of /proc are misleading."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
