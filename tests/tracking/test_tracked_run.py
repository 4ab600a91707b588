"""Runs of trials: children of another run, evaluated later or never."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mlflow_store import client, history, runs
from raymi_command import events
from tiny_sweeps import CPU, begin, trained

from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.tracking import store
from raymi.tracking.description import NOTE
from raymi.tracking.metric_names import rounded
from raymi.tracking.tracked_run import TrackedRun
from raymi.tuning.sweep_folder import Sweep, TrialRun

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.usefixtures("own_store")

ABOUT = {"id": "0-3", "recipe": "quickstart", "command": "python -m raymi.tune"}
VALUES = {"optim.lr": 0.03}
THIRD = TrialRun(3, 0)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return begin(tmp_path / "sweeps" / "mine", **{"optim.epochs": 1})


def child(sweep: Sweep, parent: str, log=lambda _: None) -> TrackedRun:
    config, folder = sweep.config_of(VALUES, THIRD), sweep.folder_of(THIRD)
    folder.path.mkdir(parents=True, exist_ok=True)
    params = {"swept.optim.lr": 0.03}
    return TrackedRun(
        config, folder, ABOUT, Path.cwd(), name="mine/0003", parent=parent, params=params, log=log
    )


def new_parent() -> str:
    experiment = store.experiment_id(client(), "raymi", Path.cwd())
    return client().create_run(experiment, run_name="mine").info.run_id


def children(parent: str) -> list[str]:
    ours = f"tags.`mlflow.parentRunId` = '{parent}'"
    experiment = client().get_run(parent).info.experiment_id
    return [run.info.run_id for run in client().search_runs([experiment], ours)]


def test_a_run_without_evaluation_finishes_without_a_model(sweep):
    told: list[str] = []
    parent = new_parent()
    followed = child(sweep, parent, told.append)
    followed.deliver(None)
    assert children(parent) == [followed.run_id], "before it has begun"
    assert trained(sweep, THIRD, VALUES)[0].status == "finished"
    assert not followed.is_delivered("FINISHED")
    followed.deliver("FINISHED", "Trial 3 finished.")
    assert followed.is_delivered("FINISHED")
    assert not followed.is_delivered("FAILED")
    run = client().get_run(followed.run_id)
    assert (run.info.run_name, run.info.status) == ("mine/0003", "FINISHED")
    assert run.data.tags[NOTE].startswith("Trial 3 finished.")
    assert run.data.params["swept.optim.lr"] == run.data.params["optim.lr"] == "0.03"
    assert run.data.params["attack.steps"] == "2"
    assert [step for step, _ in history(followed.run_id, "val/robust_acc")] == [1]
    assert not client().search_logged_models([run.info.experiment_id])
    assert not told


def test_a_later_evaluation_is_delivered_once_with_its_model(sweep):
    parent = new_parent()
    trained(sweep, THIRD, VALUES)
    child(sweep, parent).deliver("FINISHED")
    config, folder = sweep.config_of(VALUES, THIRD), sweep.folder_of(THIRD)
    assert train(config, LocalContext(CPU, folder.stop_file), folder).finished
    later = child(sweep, parent)
    assert not later.is_delivered("FINISHED")
    later.deliver("FINISHED")
    assert later.models["best"] == "models:/raymi-digits/1"
    (best,) = [one for one in events(folder.path, "evaluation") if one["chosen"]]
    assert history(later.run_id, "test/best/pgd2_acc") == [(1, rounded(best["robust"]))]
    assert len(history(later.run_id, "val/robust_acc")) == 1
    for _ in range(2):
        again = child(sweep, parent)
        assert again.is_delivered("FINISHED")
        again.deliver("FINISHED")
        assert again.models == later.models
    assert len(history(later.run_id, "val/robust_acc")) == 1
    assert len(client().search_model_versions("name = 'raymi-digits'")) == 1
    assert client().get_run(later.run_id).info.status == "FINISHED"
    assert len(runs()) == 2


def test_an_evaluation_during_a_delivery_is_awaited(sweep, monkeypatch):
    parent = new_parent()
    trained(sweep, THIRD, VALUES)
    config, folder = sweep.config_of(VALUES, THIRD), sweep.folder_of(THIRD)
    assert train(config, LocalContext(CPU, folder.stop_file), folder).finished
    whole = folder.journal.read_bytes()
    *_, best = re.finditer(rb'\{"kind": "evaluation"', whole)
    early = child(sweep, parent)
    log_batch = mlflow.MlflowClient.log_batch

    def and_then_the_rest_is_written(self, run_id, metrics=(), **others):
        log_batch(self, run_id, metrics=metrics, **others)
        if any(metric.key.startswith("test/") for metric in metrics):
            folder.journal.write_bytes(whole)

    folder.journal.write_bytes(whole[: best.start()])
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", and_then_the_rest_is_written)
        early.deliver("FINISHED")
    assert folder.journal.read_bytes() == whole
    assert not early.models
    assert not early.is_delivered("FINISHED")
    later = child(sweep, parent)
    later.deliver("FINISHED")
    assert set(later.models) == {"best", "last"}


def test_a_run_follows_a_recreated_parent(sweep):
    trained(sweep, THIRD, VALUES)
    first, second = new_parent(), new_parent()
    child(sweep, first).deliver("FINISHED")
    moved = child(sweep, second)
    assert not moved.is_delivered("FINISHED")
    moved.deliver("FINISHED")
    assert (children(first), children(second)) == ([], [moved.run_id])
    assert len(history(moved.run_id, "val/robust_acc")) == 1
