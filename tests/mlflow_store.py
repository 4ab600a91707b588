"""The MLflow store of the current folder: what is in it, and how it is away for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymi.tracking import store

WAIT = 240.0  # seconds; only a failing test waits that long


def in_folder(home: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes it the current folder, with the store in it, and ignores the environment's store."""
    patch.chdir(home)
    for name, value in store.CLIENT_SETTINGS.items():
        patch.setenv(name, value)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client() -> Any:
    return store.connect(store.tracking_uri(Path.cwd()))


def runs() -> list[Any]:
    experiments = [one.experiment_id for one in client().search_experiments()]
    return list(client().search_runs(experiments))


def history(run_id: str | None, metric: str) -> list[tuple[int, float]]:
    points = client().get_metric_history(run_id, metric)
    return [(point.step, point.value) for point in points]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Outage:
    """Makes calls of the MLflow client fail while it lasts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.over = False
        self.failures = 0
        for name in names:
            self._wrap(monkeypatch, name)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        import mlflow

        real = getattr(mlflow.MlflowClient, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.over:
                self.failures += 1
                raise ConnectionError  # without a text
            return real(*args, **kwargs)

        monkeypatch.setattr(mlflow.MlflowClient, name, call)
