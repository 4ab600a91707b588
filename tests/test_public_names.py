"""Public names of the package: listed, imported on first use, typed."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import raymi
from raymi.__main__ import COMMANDS

ROOT = Path(raymi.__file__).parent


def test_import_loads_no_library() -> None:
    code = (
        "import raymi, sys; print(sorted({'torch', 'numpy', 'ray', 'pydantic'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_documented_and_listed() -> None:
    assert set(raymi.__all__) <= set(dir(raymi))
    assert [name for name in raymi.__all__ if not inspect.getdoc(getattr(raymi, name))] == []


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = [one for one in tree.body if isinstance(one, ast.If)]
    typed = {alias.name: one.module for one in block.body if isinstance(one, ast.ImportFrom)
             for alias in one.names}  # fmt: skip
    assert typed == {name: f"raymi.{module}" for name, module in raymi._MODULES.items()}
    assert (ROOT / "py.typed").is_file()


def test_no_public_name_is_a_command() -> None:
    assert set(raymi.__all__).isdisjoint(COMMANDS)
