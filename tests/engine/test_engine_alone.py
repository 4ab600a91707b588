"""The engine needs neither Ray nor MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import importlib.util, pkgutil, sys
sys.modules["ray"] = sys.modules["mlflow"] = None  # importing either raises ModuleNotFoundError

from layers import WITHOUT_RAY_AND_MLFLOW

modules = []
for part in WITHOUT_RAY_AND_MLFLOW:
    if importlib.util.find_spec(f"raymi.{part}") is None:
        continue
    found = importlib.import_module(f"raymi.{part}")
    modules += [part]
    modules += [f"{part}.{m.name}" for m in pkgutil.iter_modules(getattr(found, "__path__", ()))]
for module in modules:
    importlib.import_module(f"raymi.{module}")

from pathlib import Path
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.runs.run_folder import RunFolder
from tiny_runs import tiny_config

outcome = train(tiny_config(), LocalContext("cpu"), RunFolder(Path(sys.argv[1])))
assert outcome.finished and outcome.global_step == 10, outcome
leaked = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
assert not leaked & {"ray", "mlflow"}
print("modules:", len(modules))
"""


def test_everything_below_the_commands_imports_and_trains_without_ray_and_mlflow(tmp_path):
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 30
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert (tmp_path / "run" / "last.safetensors").is_file()
