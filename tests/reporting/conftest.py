"""Finished runs that take a second, and their histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs

from raymi.reporting.history import History, read_history
from raymi.runs.run_folder import RunFolder


def trained(path: Path, settings: dict[str, Any]) -> RunFolder:
    """Trains a tiny run; returns its folder."""
    folder = RunFolder(path)
    tiny_runs.tiny_run(0, 1, path, settings, [])
    folder.write_config(tiny_runs.tiny_config(settings))
    folder.write_about({"recipe": "tiny", "command": f"python -m raymi.train name={path.name}"})
    return folder


@pytest.fixture(scope="session")
def namid(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Run with MI, averaged weights and probes."""
    settings = {"optim.epochs": 4, "optim.ema": 0.8, "probe.steps": 3, "probe.batch": 32}
    return trained(tmp_path_factory.mktemp("runs") / "namid", settings)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Run without MI."""
    return trained(tmp_path_factory.mktemp("runs") / "plain", {"mi.weight": 0.0, "seed": 1})


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Run with three phases."""
    return trained(tmp_path_factory.mktemp("runs") / "staged", {"mi.schedule": "staged"})


@pytest.fixture(scope="session", params=["teacher", "js"])
def without_estimators(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> History:
    """Run of a form without estimators."""
    no_keys = {"mi.hidden": None, "mi.base_width": None, "mi.depth": None}
    path = tmp_path_factory.mktemp("runs") / request.param
    return read_history(trained(path, {"mi.form": request.param, **no_keys}))


@pytest.fixture(scope="session")
def histories(namid: RunFolder, plain: RunFolder, staged: RunFolder) -> list[History]:
    """Histories of all three runs."""
    return [read_history(folder) for folder in (namid, plain, staged)]
