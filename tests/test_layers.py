"""An import points down in the table of layers, or sideways without a cycle."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

import pytest
from layers import LAYERS, OWNERS, PACKAGE, Import, all_imports, imports_of

LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return all_imports()


def upward(imports: Iterable[Import]) -> list[str]:
    """Returns the imports of a part in a higher layer."""
    return [
        str(one)
        for one in imports
        if one.imported_part is not None and LEVEL[one.imported_part] < LEVEL[one.part]
    ]


def cycle(imports: Iterable[Import]) -> list[str] | None:
    """Returns the parts of a cycle of imports, the first one twice; None without a cycle."""
    graph: dict[str, set[str]] = {}
    for one in imports:
        if one.imported_part not in (None, one.part):
            graph.setdefault(one.part, set()).add(str(one.imported_part))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def misplaced(imports: Iterable[Import]) -> list[str]:
    """Returns the imports of a library outside of the part that owns it."""
    owners = ((one, OWNERS.get(one.module.split(".")[0])) for one in imports)
    return [str(one) for one, owner in owners if owner not in (None, one.part)]


def test_each_part_of_the_package_has_a_layer():
    parts = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    parts |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts <= set(LEVEL), "add new parts to tests/layers.py"


def test_no_import_points_up(imports):
    assert upward(imports) == []


def test_no_cycle_joins_two_parts(imports):
    assert cycle(imports) is None


def test_ray_and_mlflow_are_imported_in_one_part_each(imports):
    assert misplaced(imports) == []


def test_the_checks_find_what_they_refuse():
    down = "from raymi.runs.journal import Journal"
    up = "def f():\n    from raymi.reporting import table"
    engine = list(imports_of(f"{down}\n{up}\nimport ray.train", PACKAGE / "engine" / "a.py"))
    place = "raymi/engine/a.py"
    assert upward(engine) == [f"{place}:3 imports raymi.reporting"]
    assert misplaced(engine) == [f"{place}:4 imports ray.train"]
    assert cycle(engine) is None
    back = list(imports_of("from raymi import engine", PACKAGE / "runs" / "b.py"))
    found = cycle([*engine, *back])
    assert set(found or ()) == {"engine", "runs"}
