"""Field types of command options: names, seeds, and files and folders that can be written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from raymi.errors import UserError, did_you_mean, storage_remedy
from raymi.fields import Accepts, Listed, NonNegative
from raymi.formatting import shortened, shown
from raymi.local_paths import local_path
from raymi.recipes import BASE_RECIPES, RECIPES, VARIANTS
from raymi.runs.run_paths import home_folder

_MOST_SEEDS = 10_000
_DIGITS = 19


def _names(value: Any) -> Any:
    """Parses comma-separated names, at least one, each once."""
    if not isinstance(value, str):
        return value
    given = [part.strip() for part in value.split(",") if part.strip()]
    if not given:
        raise ValueError(f"expected names with commas between them, got {shown(value)}")
    if twice := [shortened(name) for name, count in Counter(given).items() if count > 1]:
        raise ValueError(f"{', '.join(twice)} is given twice")
    return tuple(given)


def known(kind: str, names: Collection[str]) -> AfterValidator:
    """Returns a validator that refuses unknown names, of one or several, with suggestions."""

    def check(value: Any) -> Any:
        given = (value,) if isinstance(value, str) else value or ()
        unknown = [f"{n!r}: {did_you_mean(n, names)}" for n in given if n not in names]
        if unknown:
            raise ValueError(f"unknown {kind} {'; '.join(unknown)}")
        return value

    return AfterValidator(check)


def _seeds(value: Any) -> Any:
    """Parses seeds: `0..2` as (0, 1, 2), `0,5` as (0, 5), or both."""
    if not isinstance(value, str):
        return value
    seeds: list[int] = []
    for part in value.split(","):
        low, dots, high = (word.strip() for word in part.partition(".."))
        bounds = [low, high if dots else low]
        if not all(map(_is_whole, bounds)):
            raise ValueError(f"expected 0..9 or 0,1,2, got {shown(value)}")
        if int(bounds[0]) > int(bounds[1]):
            raise ValueError(f"expected the smaller one first, got {shown(value)}")
        if int(bounds[1]) - int(bounds[0]) >= _MOST_SEEDS:
            raise ValueError(f"expected at most {_MOST_SEEDS} seeds, got {shown(value)}")
        seeds += range(int(bounds[0]), int(bounds[1]) + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed is given twice in {shown(value)}")
    return tuple(seeds)


def _new_file(text: Any) -> Path:
    """Returns the absolute path of a file that can be written."""
    path = _path(text)
    if not path.parent.is_dir():
        raise ValueError(f"no folder {path.parent}: make it, or give another file")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file in it")
    if not _is_writable(path.parent):
        raise ValueError(f"no permission to write into {path.parent}: give another file")
    return path


def writable_folder(text: Any) -> Path:
    """Returns the absolute path of a folder that exists or can be made.

    Raises:
        UserError: the folder cannot be written.
    """
    path = _path(text)
    existing = next(place for place in (path, *path.parents) if os.path.exists(place))
    if not existing.is_dir():
        raise UserError(f"{existing} is not a folder: give another one")
    if not _is_writable(existing):
        raise UserError(f"no permission to write into {existing}: give another folder")
    return path


def _path(text: Any) -> Path:
    path = local_path(text)
    try:
        os.path.lexists(path)
        path.is_dir()
    except OSError as error:
        raise ValueError(f"{shown(str(text))}: {error.strerror}: {storage_remedy(error)}") from None
    return path


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


def in_home(folder: str) -> Any:
    """Returns a default: a folder in `home_folder`, which depends on the current one."""
    return Field(default_factory=lambda: home_folder() / folder)


Names = Annotated[
    tuple[str, ...], BeforeValidator(_names), Accepts("names with commas between them", "A,B")
]
Seeds = Annotated[tuple[int, ...], BeforeValidator(_seeds), Accepts("0..9 or 0,1,2", "0..9")]
Radii = Annotated[
    tuple[NonNegative, ...],
    BeforeValidator(_names),
    Accepts("radii in pixel units such as 4/255,8/255", "A,B"),
]
NewFile = Annotated[Path, BeforeValidator(_new_file), Accepts("file", "FILE")]
NewFolder = Annotated[Path, BeforeValidator(writable_folder), Accepts("folder", "FOLDER")]

_BASES = {name: recipe.description for name, recipe in BASE_RECIPES.items()}
_VARIANTS = {name: variant.description for name, variant in VARIANTS.items()}
BaseRecipe = Annotated[str, Accepts("recipe or .toml file", "NAME"), Listed("recipes", _BASES)]
Recipe = Annotated[
    BaseRecipe, Listed("variants, added to a recipe's name as in quickstart-at", _VARIANTS, RECIPES)
]
Arms = Annotated[Names, known("arm", VARIANTS), Listed("arms", _VARIANTS)]
