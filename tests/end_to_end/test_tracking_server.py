"""A tracking server that is killed, away, slow or failing: training goes on, and afterwards all of
it is there, in order, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from mlflow_server import Proxy, Server
from raymi_command import UNHURRIED, events, start, succeed, unhurried_model, wait_for

from raymi.engine.run_folder import RunFolder
from raymi.tracking import delivery, store
from raymi.tracking.tracker import Tracker

pytestmark = pytest.mark.slow

SETTINGS = (
    "data.limit=100", "attack.steps=2", "validation.steps=2", "evaluation.steps=2",
    "scaling.workers=1", "probe.steps=0",
)  # fmt: skip
WAIT = 120.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "server")
    yield made
    made.kill()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def all_runs(uri: str) -> list[Any]:
    client = store.connect(uri)
    experiment = client.get_experiment_by_name("raymi")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def assert_all_is_there(server: Server, folder: Path) -> None:
    """What the journal of a finished run says is in MLflow, each once and in order."""
    client, (run,) = store.connect(server.uri), all_runs(server.uri)
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"
    for name, of in (
        ("train/loss", lambda event: event["train"]["loss"]),
        ("val/robust_acc", lambda event: event["val"]["robust_acc"]),
    ):
        told = [(one.step, one.value) for one in client.get_metric_history(run_id, name)]
        assert told == [(event["epoch"], of(event)) for event in events(folder, "epoch")]
    steps = [one.step for one in client.get_metric_history(run_id, "train_steps/loss")]
    assert steps == [event["global_step"] for event in events(folder, "step")]
    recorded = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert [one.step for one in recorded] == list(range(1, len(recorded) + 1))
    logs = RunFolder(folder).machine_logs()
    assert len(recorded) == len(logs[0].read_text().splitlines()) > 0
    models = client.search_logged_models([run.info.experiment_id])
    assert sorted(model.name for model in models) == ["best", "last"]
    assert {str(model.status) for model in models} == {"READY"}
    (version,) = client.search_model_versions("name = 'raymi-digits'")
    assert version.run_id == run_id
    files = {file.path for file in client.list_artifacts(run_id)}
    assert {"config.json", "journal.jsonl"} <= files


def test_a_server_that_is_killed_in_the_middle_stops_nobody_and_misses_nothing(
    tmp_path: Path, server: Server
) -> None:
    server.start()
    hurry = unhurried_model(tmp_path)
    train = start(
        tmp_path, *SETTINGS, UNHURRIED, "name=mine", "optim.epochs=60",
        MLFLOW_TRACKING_URI=server.uri,
    )  # fmt: skip
    folder = tmp_path / "runs" / "mine"

    def num_epochs() -> int:
        return len(events(folder, "epoch"))

    wait_for(lambda: num_epochs() >= 2, train)
    wait_for(lambda: any("train/loss" in one.data.metrics for one in all_runs(server.uri)), train)
    server.kill()
    before = num_epochs()
    wait_for(lambda: num_epochs() >= before + 3, train)
    server.start()
    hurry.touch()
    out, err = train.communicate(timeout=WAIT * 2)
    assert train.returncode == 0, err
    assert "does not take what it is sent" in out
    if "models:/raymi-digits/1" not in out:  # the server needed longer than the rest of the run
        assert "nothing is lost" in out
        succeed(tmp_path, "resume=mine", MLFLOW_TRACKING_URI=server.uri)
    assert_all_is_there(server, folder)


def test_a_server_that_is_away_at_the_start_gets_the_run_later_and_once(
    tmp_path: Path, server: Server
) -> None:
    out = succeed(
        tmp_path, *SETTINGS, "name=mine", "optim.epochs=3", MLFLOW_TRACKING_URI=server.uri
    )
    assert "nothing is lost, deliver it with: python -m raymi.train resume=mine" in out
    assert "PGD-2" in out, "the results are there without it"
    server.start()
    out = succeed(tmp_path, "resume=mine", MLFLOW_TRACKING_URI=server.uri)
    assert "models:/raymi-digits/1" in out
    assert_all_is_there(server, tmp_path / "runs" / "mine")


@pytest.mark.parametrize("fault", ["slow", "fail", "lose"])
def test_a_server_that_has_a_fault_for_a_while_gets_all_of_it_once(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    for name, value in store.CLIENT_SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.2, 0.5))
    server.start()
    proxy = Proxy(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    settings = {"tracking.enabled": True, "tracking.machine_every": 0.1}
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.path.mkdir(parents=True)
    config = tiny_runs.tiny_config(settings)
    folder.write_config(config)
    told: list[str] = []
    tracker = Tracker(config, folder, {"id": "1", "command": "train"}, tmp_path, told.append)
    tracker.start()
    wait_until(lambda: tracker.run_id is not None)
    proxy.mode = fault
    since = time.monotonic()
    tiny_runs.tiny_run(0, 1, folder.path, settings, [])
    assert time.monotonic() - since < 60, "seconds of training; nobody waits for the server"
    if fault != "slow":
        wait_until(lambda: proxy.failed >= 3)
        assert "does not take what it is sent" in told[0]
    proxy.mode = "pass"
    assert tracker.close("FINISHED", WAIT), tracker.problem
    proxy.close()
    assert_all_is_there(server, folder.path)
