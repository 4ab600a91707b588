"""Prints the lowest versions that `pyproject.toml` allows, one requirement `name==version` a line.

Takes the names of the extras to include: `python .ci/lowest_versions.py test dev`.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest_versions(pyproject: str, extras: list[str]) -> list[str]:
    """Returns pinned requirements; of several bounds for one package, the highest.

    Args:
        pyproject: text of `pyproject.toml`.
        extras: optional dependencies to include. Those that they refer to must be named, too.

    Raises:
        ValueError: a requirement without a lower bound.
    """
    document = tomllib.loads(pyproject)
    project = document["project"]
    lines = [*document["build-system"]["requires"], *project["dependencies"]]
    lines += [line for extra in extras for line in project["optional-dependencies"][extra]]
    names: dict[str, set[str]] = {}
    lowest: dict[str, Version] = {}
    for requirement in map(Requirement, lines):
        if requirement.name == project["name"]:
            continue
        bounds = [one.version for one in requirement.specifier if one.operator in (">=", "==")]
        if not bounds:
            raise ValueError(f"{requirement}: write a lower bound (>=) that was tried")
        names.setdefault(requirement.name, set()).update(requirement.extras)
        known = lowest.get(requirement.name, Version("0"))
        lowest[requirement.name] = max(known, *map(Version, bounds))
    return [
        f"{name}[{','.join(sorted(own))}]=={lowest[name]}" if own else f"{name}=={lowest[name]}"
        for name, own in names.items()
    ]


if __name__ == "__main__":
    print("\n".join(lowest_versions(PYPROJECT.read_text(), sys.argv[1:])))
