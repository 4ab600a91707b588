"""Real MLflow stores, empty or with a finished run in them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_runs
from mlflow_store import WAIT, in_folder

from raymi.runs.run_folder import RunFolder
from raymi.tracking import delivery, store
from raymi.tracking.delivery import Delivery
from raymi.tracking.tracker import Tracker

pytest.importorskip("mlflow")

ABOUT = {"id": "89abcdef", "recipe": "tiny", "command": "python -m raymi.train"}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables; creating them takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Iterator[None]:
    """An empty store in the current folder, polled and retried without delay."""
    shutil.copy(empty_store, tmp_path)
    in_folder(tmp_path, monkeypatch)
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.01, 0.02))
    yield
    for thread in threading.enumerate():
        if isinstance(thread, Delivery):
            thread.abandon()
            thread.join(WAIT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: a store, and the finished run `mine`, whose chosen model is registered
    as `tiny`."""
    home = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        in_folder(home, patch)
        folder = RunFolder(home / "runs" / "mine")
        settings = {"tracking.enabled": True, "tracking.registered_name": "tiny"}
        tiny_runs.tiny_run(0, 1, folder.path, settings, [])
        config = tiny_runs.tiny_config(settings)
        folder.write_config(config)
        followed = Tracker(config, folder, ABOUT, home)
        followed.start()
        assert followed.close("FINISHED", WAIT), followed.problem
        yield home
