"""Stopped and killed runs lose nothing, and their output names the command that continues them."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from ray_head import Head
from raymi_command import (
    SLOW_MODEL,
    TINY,
    events,
    finish,
    processes_below,
    start,
    succeed,
    wait_for,
    write_slow_model,
)
from undisturbed import assert_same_weights, undisturbed_slow_model

from raymi import train
from raymi.runs.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SETTINGS = (
    "data.limit=300", "optim.epochs=4", "attack.steps=2", "validation.steps=2",
    "evaluation.steps=2", "mi.hidden=16", "mi.base_width=4", SLOW_MODEL,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run without any disturbance."""
    return undisturbed_slow_model(tmp_path_factory.mktemp("whole"), *SETTINGS)


def wait_for_another_epoch(run: Path, process: subprocess.Popen) -> None:
    before = len(events(run, "epoch"))
    wait_for(lambda: len(events(run, "epoch")) > before, process)


def mlflow_status(folder: Path) -> list[str]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raymi")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


def end_by_signal(process: subprocess.Popen, signum: int, run: Path) -> None:
    """Sends a signal to a run and checks that it ends with a checkpoint and one clear line."""
    stops = len(events(run, "stopped"))
    process.send_signal(signum)
    output = finish(process, 128 + signum)
    assert f"to continue: python -m raymi.train resume={run.name}" in output
    assert len(events(run, "stopped")) == stops + 1, "with a checkpoint"
    assert not events(run, "finished")


def train_workers(ray: subprocess.Popen) -> list[psutil.Process]:
    return processes_below(ray, "RayTrainWorker")


def kill_one_worker(ray: subprocess.Popen) -> list[psutil.Process]:
    """Kills one of the two training processes below `ray`; returns both."""
    workers = train_workers(ray)
    assert len(workers) == 2
    workers[1].kill()
    return workers


def test_interrupted_run_with_a_killed_worker_ends_with_identical_weights(
    joined_ray: Head,
    tmp_path: Path,
    whole: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    release, run = write_slow_model(tmp_path), tmp_path / "runs" / "stopped"
    process = start(tmp_path, *SETTINGS, "name=stopped", **joined_ray.env)
    wait_for_another_epoch(run, process)
    monkeypatch.chdir(tmp_path)
    assert train.main(["resume=stopped"]) == 2
    assert "running in another process" in capsys.readouterr().err
    end_by_signal(process, signal.SIGINT, run)
    assert mlflow_status(tmp_path) == ["KILLED"]

    process = start(tmp_path, *SETTINGS, "name=stopped", **joined_ray.env)  # the same command
    wait_for_another_epoch(run, process)
    kill_one_worker(joined_ray.process)
    wait_for(lambda: len(events(run, "start")) == 3, process)
    release.touch()
    assert "workers restarted" in finish(process)
    assert_same_weights(whole, RunFolder(run), "last")
    assert mlflow_status(tmp_path) == ["FINISHED"], "the same MLflow run is continued"


@pytest.mark.exhaustive
def test_time_limit_ends_a_run_with_exit_code_75(
    joined_ray: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("name=late", "limit.hours=1e-9", "scaling.workers=1", "tracking.enabled=false")
    assert train.main([*TINY, *words]) == 75
    assert "to continue: python -m raymi.train resume=late" in capsys.readouterr().out
    assert len(events(tmp_path / "runs" / "late", "stopped")) == 1, "with a checkpoint"


def test_ctrl_c_before_the_workers_start_ends_the_command(tmp_path: Path) -> None:
    process = start(tmp_path, *TINY, "name=early", "tracking.enabled=false")
    wait_for(lambda: (tmp_path / "runs" / "early" / "config.json").is_file(), process)
    wait_for(lambda: psutil.Process(process.pid).children(), process)  # Ray's first processes
    process.send_signal(signal.SIGINT)
    finish(process, 130)


@pytest.mark.exhaustive
def test_a_terminated_and_a_killed_driver_lose_nothing_with_a_ray_of_their_own(
    tmp_path: Path, whole: RunFolder
) -> None:
    release, run = write_slow_model(tmp_path), tmp_path / "runs" / "killed"
    words = ("name=killed", "checkpoint.every_steps=1", "tracking.enabled=false")
    process = start(tmp_path, *SETTINGS, *words)
    wait_for_another_epoch(run, process)
    end_by_signal(process, signal.SIGTERM, run)

    process = start(tmp_path, "resume=killed")
    wait_for_another_epoch(run, process)
    first = kill_one_worker(process)
    wait_for(lambda: len(events(run, "start")) == 3, process)
    wait_for_another_epoch(run, process)
    workers = [worker for worker in train_workers(process) if worker not in first]
    assert len(workers) == 2, "the worker group was started again"
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "workers end with their driver"
    assert not events(run, "finished"), "killed in the middle"

    newest = max((run / "checkpoints").glob("step-*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    release.touch()
    output = succeed(tmp_path, "resume=killed")
    assert f"warning: checkpoint {newest} is damaged" in output
    assert "using the one before it" in output
    continued = events(run, "start")[-1]["global_step"]
    assert continued == int(newest.name.split("-")[1]) - 1
    assert_same_weights(whole, RunFolder(run), "last")
