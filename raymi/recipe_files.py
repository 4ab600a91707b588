"""Recipe files: a TOML file names a recipe, or another file, and lays settings over it.

recipe = "quickstart"        # or "base.toml", relative to this file

[optim]
epochs = 30

[attack]
eps = "8/255"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from raymi.errors import UserError, first_line, storage_remedy
from raymi.formatting import shown
from raymi.local_paths import local_path
from raymi.overrides import Tree, flatten, nest

SUFFIX = ".toml"


class Layer(NamedTuple):
    """Settings of a recipe file, as a nested tree."""

    path: Path
    settings: Tree


def read_recipe_file(name: str) -> tuple[str, list[Layer]]:
    """Follows recipe files to a named recipe.

    Args:
        name: path of a file.

    Returns:
        The name of the recipe, and the settings of the files, the first to apply first.

    Raises:
        UserError: a file is missing or no TOML, names no recipe, or leads back to itself.
    """
    layers: list[Layer] = []
    path = local_path(name, "recipe").resolve()
    while True:
        seen = [layer.path for layer in layers]
        if path in seen:
            circle = " -> ".join(one.name for one in [*reversed(seen), path])
            raise UserError(f"{path}: recipe files in a circle ({circle}): let one name a recipe")
        tree = _read(path)
        recipe = tree.pop("recipe", None)
        if not isinstance(recipe, str):
            got = "none" if recipe is None else shown(recipe)
            raise UserError(
                f"{path}: recipe: expected the name of a recipe or a {SUFFIX} file, got {got}: "
                'write recipe = "quickstart", say, before the first table'
            )
        flat = flatten(tree)
        none = [key for key, value in flat.items() if str(value).lower() in ("none", "null", "")]
        layers.insert(0, Layer(path, nest({**flat, **dict.fromkeys(none)})))
        if not recipe.endswith(SUFFIX):
            return recipe, layers
        path = (path.parent / Path(recipe).expanduser()).resolve()


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise UserError(f"no recipe file {path}: give the path of a {SUFFIX} file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: {storage_remedy(error)}") from None
    except (ValueError, RecursionError) as error:  # of TOML, UTF-8 and numbers
        raise UserError(f"{path} is not TOML: {first_line(error)}") from None
