"""A tracking server that is killed, away, slow or failing: training continues, nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from mlflow_server import Proxy, Server
from ray_head import Head
from raymi_command import SLOW_MODEL, events, finish, start, succeed, wait_for, write_slow_model

from raymi import train
from raymi.commands.train import run as train_run
from raymi.runs.run_folder import RunFolder
from raymi.tracking import delivery, store
from raymi.tracking.metric_names import rounded
from raymi.tracking.tracker import Tracker

pytestmark = [pytest.mark.slow, pytest.mark.ray]

WAIT = 300.0


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill, not started."""
    made = Server(tmp_path / "server")
    yield made
    made.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short times of MLflow's client and between attempts, in this process."""
    for name, value in store.CLIENT_SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.2, 0.5))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def all_runs(uri: str, experiment: str) -> list[Any]:
    client = store.connect(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def settings_of(experiment: str) -> dict[str, Any]:
    """Returns settings of a tiny run that is tracked."""
    return {
        "tracking.enabled": True,
        "tracking.experiment": experiment,
        "tracking.registered_name": experiment,
        "tracking.machine_every": 0.1,
    }


def assert_all_is_there(server: Server, folder: Path, experiment: str) -> None:
    """Asserts that the journal of a finished run is in MLflow, each event once and in order."""
    client, (run,) = store.connect(server.uri), all_runs(server.uri, experiment)
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"
    for name, of in (
        ("train/loss", lambda event: event["train"]["loss"]),
        ("val/robust_acc", lambda event: event["val"]["robust_acc"]),
    ):
        logged = [(one.step, one.value) for one in client.get_metric_history(run_id, name)]
        assert logged == [(one["epoch"], rounded(of(one))) for one in events(folder, "epoch")]
    steps = [one.step for one in client.get_metric_history(run_id, "train_steps/loss")]
    assert steps == [event["global_step"] for event in events(folder, "step")]
    recorded = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert [one.step for one in recorded] == list(range(1, len(recorded) + 1))
    logs = RunFolder(folder).machine_logs()
    assert len(recorded) == len(logs[0].read_text().splitlines()) > 0
    models = client.search_logged_models([run.info.experiment_id])
    assert sorted(model.name for model in models) == ["best", "last"]
    assert {str(model.status) for model in models} == {"READY"}
    (version,) = client.search_model_versions(f"name = '{experiment}'")
    assert version.run_id == run_id
    files = {file.path for file in client.list_artifacts(run_id)}
    assert {"config.json", "journal.jsonl"} <= files


def test_a_server_killed_during_a_run_never_stops_it_and_misses_nothing(
    joined_ray: Head, tmp_path: Path, own_server: Server
) -> None:
    own_server.start()
    release, folder = write_slow_model(tmp_path), tmp_path / "runs" / "killed"
    env = {**joined_ray.env, "MLFLOW_TRACKING_URI": own_server.uri}
    process = start(
        tmp_path, "data.limit=100", "attack.steps=2", "validation.steps=2", "evaluation.steps=2",
        "scaling.workers=1", "probe.steps=0", SLOW_MODEL, "name=killed", "optim.epochs=20",
        "tracking.experiment=killed", "tracking.registered_name=killed", **env,
    )  # fmt: skip

    def num_epochs() -> int:
        return len(events(folder, "epoch"))

    def any_epoch_is_logged() -> bool:
        runs = all_runs(own_server.uri, "killed")
        return any("train/loss" in run.data.metrics for run in runs)

    wait_for(lambda: num_epochs() >= 2, process)
    wait_for(any_epoch_is_logged, process)
    own_server.kill()
    before = num_epochs()
    wait_for(lambda: num_epochs() > before, process)
    own_server.start()
    release.touch()
    output = finish(process)
    assert "rejects data" in output
    if "models:/killed/1" not in output:  # the server was back too late for the end of the run
        assert "nothing is lost" in output
        succeed(tmp_path, "resume=killed", **env)
    assert_all_is_there(own_server, folder, "killed")


def test_a_run_that_ends_while_the_server_is_away_is_delivered_later(
    tmp_path: Path,
    tracking_server: Server,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = RunFolder(tmp_path / "runs" / "away")
    folder.path.mkdir(parents=True)
    config = tiny_runs.tiny_config(settings_of("away"))
    folder.write_config(config)
    folder.write_about({"id": "1", "recipe": "tiny", "command": "python -m raymi.train name=away"})
    tiny_runs.tiny_run(0, 1, folder.path, settings_of("away"), [])
    monkeypatch.chdir(tmp_path)
    proxy = Proxy(tracking_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    proxy.mode = "fail"
    monkeypatch.setattr(train_run, "FAIL_SECONDS", 3.0)
    assert train.main(["resume=away"]) == 0
    output = capsys.readouterr().out
    assert "nothing is lost, deliver it with: python -m raymi.train resume=away" in output
    assert "PGD-2" in output, "the results are shown without the server"
    proxy.mode = "pass"
    monkeypatch.setattr(train_run, "FAIL_SECONDS", WAIT)
    assert train.main(["resume=away"]) == 0
    assert "models:/away/1" in capsys.readouterr().out
    proxy.close()
    assert_all_is_there(tracking_server, folder.path, "away")


@pytest.mark.parametrize(
    "fault",
    [*(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("slow", "fail")), "lose"],
)
def test_a_server_with_a_fault_for_a_while_gets_everything_once(
    tmp_path: Path,
    tracking_server: Server,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    proxy = Proxy(tracking_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    folder = RunFolder(tmp_path / "runs" / fault)
    folder.path.mkdir(parents=True)
    config = tiny_runs.tiny_config(settings_of(fault))
    folder.write_config(config)
    messages: list[str] = []
    about = {"id": fault, "command": "train"}
    tracker = Tracker(config, folder, about, tmp_path, messages.append)
    tracker.start()
    wait_until(lambda: tracker.run_id is not None)
    proxy.mode = fault
    tiny_runs.tiny_run(0, 1, folder.path, settings_of(fault), [])
    if fault != "slow":
        wait_until(lambda: proxy.failed >= 3)
        assert "rejects data" in messages[0]
    proxy.mode = "pass"
    assert tracker.close("FINISHED", WAIT), tracker.problem
    proxy.close()
    assert_all_is_there(tracking_server, folder.path, fault)
