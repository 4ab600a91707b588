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


def lowest_versions(pyproject: str, extras: list[str]) -> dict[str, str]:
    """Returns the lower bound by package, the highest one where several requirements name it.

    Args:
        pyproject: text of `pyproject.toml`.
        extras: optional dependencies to include, with those that they refer to.

    Raises:
        ValueError: a requirement without a lower bound.
    """
    document = tomllib.loads(pyproject)
    project = document["project"]
    waiting = [*document["build-system"]["requires"], *project["dependencies"]]
    waiting += [f"{project['name']}[{','.join(extras)}]"]
    lowest: dict[str, str] = {}
    while waiting:
        requirement = Requirement(waiting.pop(0))
        if requirement.name == project["name"]:
            for extra in sorted(requirement.extras):
                waiting += project["optional-dependencies"][extra]
            continue
        bounds = [one.version for one in requirement.specifier if one.operator in (">=", "==")]
        if not bounds:
            raise ValueError(f"{requirement}: write a lower bound (>=) that was tried")
        bounds += [lowest[requirement.name]] if requirement.name in lowest else []
        lowest[requirement.name] = max(bounds, key=Version)
    return lowest


if __name__ == "__main__":
    for name, version in lowest_versions(PYPROJECT.read_text(), sys.argv[1:]).items():
        print(f"{name}=={version}")
