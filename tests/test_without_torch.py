"""Settings and options of commands import without torch: help and refusals come quickly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import importlib, json, sys
sys.modules["torch"] = None  # importing it raises ModuleNotFoundError
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""
SETTINGS = [
    "config", "config_reference", "fields", "overrides", "recipes", "recipe_files", "errors",
    "hardware", "counter_rng",
    "attacks.catalogue", "attacks.suites", "models.families",
    *(f"{folder}.settings" for folder in ("attacks", "data", "losses", "mi", "models")),
]  # fmt: skip
OPTIONS = [
    f"commands.{path.parent.name}.options" for path in ROOT.glob("raymi/commands/*/options.py")
]


@pytest.fixture(scope="module")
def failed() -> dict[str, str]:
    names = [f"raymi.{name}" for name in (*SETTINGS, *OPTIONS)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_settings_import_without_torch(failed: dict[str, str]) -> None:
    assert {name: failed[f"raymi.{name}"] for name in SETTINGS if f"raymi.{name}" in failed} == {}


def test_options_of_commands_import_without_torch(failed: dict[str, str]) -> None:
    names = [f"raymi.{name}" for name in OPTIONS]
    assert len(names) == 10
    assert {name: failed[name] for name in names if name in failed} == {}


def test_help_and_refusals_work_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
from importlib import import_module
for name in sys.argv[1:]:
    main = import_module(f"raymi.{name}").main
    assert main(["--help"]) == 0
    if name not in ("train", "tune", "compare", "standalone"):  # these check the data, too
        assert main(["lrr=1"]) == 2, name
"""
    names = [name.split(".")[1] for name in OPTIONS]
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
