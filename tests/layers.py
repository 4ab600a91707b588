"""The layers of raymi, and the imports of its modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "raymi"

ENTRY_POINTS = "train tune evaluate select compare report export probe bench standalone __main__"
BASE = (
    "fields files weights local_paths statistics formatting signals errors collectives counter_rng "
    "random_state hardware own_code content_digest given objective_check"
)
LAYERS = tuple(
    tuple(parts.split())
    for parts in (
        f"commands benchmarks api config_reference {ENTRY_POINTS} __init__",
        "ray_backend tracking terminal",
        "reporting tuning selection",
        "evaluation engine",
        "runs",
        "config overrides recipe_files recipes",
        "losses mi attacks models data",
        BASE,
    )
)
"""Parts of the package, a folder or a module each, from the top layer to the bottom one."""

WITHOUT_RAY_AND_MLFLOW = tuple(part for layer in LAYERS[2:] for part in layer)
"""Parts that work where neither Ray nor MLflow is installed."""

OWNERS = {"ray": "ray_backend", "mlflow": "tracking"}
"""The one part that imports each of these libraries."""


class Import(NamedTuple):
    """An import of a module by a file of the package."""

    path: Path
    line: int
    module: str

    @property
    def part(self) -> str:
        """The importing part: the first folder below raymi/, or the module there."""
        return self.path.relative_to(PACKAGE).with_suffix("").parts[0]

    @property
    def imported_part(self) -> str | None:
        """The imported part of raymi; None: another package."""
        package, _, rest = self.module.partition(".")
        return rest.split(".")[0] if package == "raymi" and rest else None

    def __str__(self) -> str:
        return f"{self.path.relative_to(PACKAGE.parent)}:{self.line} imports {self.module}"


def imports_of(source: str, path: Path) -> Iterator[Import]:
    """Yields each import in a file, also those inside functions.

    Args:
        source: text of the file.
        path: its path, below `PACKAGE`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: relative import"
            is_root = node.module == "raymi"
            names = [f"raymi.{alias.name}" for alias in node.names] if is_root else [node.module]
        else:
            continue
        for name in names:
            if name != "raymi.__version__":
                yield Import(path, node.lineno, name)


def all_imports() -> list[Import]:
    """Returns the imports of all modules of the package."""
    return [
        one for path in sorted(PACKAGE.rglob("*.py")) for one in imports_of(path.read_text(), path)
    ]
