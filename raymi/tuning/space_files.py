"""Files of search spaces: raymi's and the user's."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from raymi.local_paths import local_path

FOLDER = "tune_spaces"
_SUFFIX = ".toml"


def space_file(name: str) -> Traversable | None:
    """Returns the file of a search space, or None.

    Args:
        name: Path of a .toml file, or the name of one in `space_folders`.
    """
    own = [local_path(name)] if name.endswith(_SUFFIX) else []
    candidates = (*own, *(folder / f"{name}{_SUFFIX}" for folder in space_folders()))
    try:
        return next((file for file in candidates if file.is_file()), None)
    except OSError:  # a name that is too long
        return None


def known_spaces() -> list[str]:
    """Returns the names of all search spaces in `space_folders`, sorted."""
    folders = [folder for folder in space_folders() if folder.is_dir()]
    names = [file.name for folder in folders for file in folder.iterdir() if file.is_file()]
    return sorted({name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)})


def space_folders() -> list[Traversable]:
    """Returns the folders of search spaces; a file in the first hides one of its name in the next.

    A wheel ships the folder inside the package, as the links of a strict editable install do. In a
    checkout, an editable install of it and the working folder of a Ray job it is beside the
    package. Only the location of `raymi` itself decides: the module finder of an editable install
    would answer for another checkout.
    """
    package = files("raymi")
    shipped = package / FOLDER
    beside = Path(str(package)).parent / FOLDER
    return [Path.cwd() / FOLDER, shipped if shipped.is_dir() else beside]
