"""Runs that are stopped lose nothing, and say how to go on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from raymi_command import TINY, events, ray_workers, start, succeed, wait_for
from raymi_command import run as raymi
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

LONGER = ("data.limit=300", "optim.epochs=8", "attack.steps=10", "evaluation.steps=4")
"""TINY, so long that workers whose driver died, which takes some seconds, are not done before."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Weights of the last epoch of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    succeed(folder, *LONGER, "name=whole", "tracking.enabled=false")
    return load_file(folder / "runs" / "whole" / "last.safetensors")


def assert_same(weights: dict, path: Path) -> None:
    other = load_file(path)
    assert weights.keys() == other.keys()
    assert all(weights[key].equal(other[key]) for key in weights)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_seconds_and_resume_ends_with_identical_weights(
    signum: signal.Signals, tmp_path: Path, uninterrupted: dict
) -> None:
    process = start(tmp_path, *LONGER, "name=stopped")
    run = tmp_path / "runs" / "stopped"
    wait_for(lambda: len(events(run, "epoch")) >= 1, process)
    began = time.monotonic()
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert time.monotonic() - began < 30
    assert len(events(run, "stopped")) == 1, "with a checkpoint"
    assert "python -m raymi.train resume=stopped" in out
    assert "Traceback" not in out + err
    assert not events(run, "finished")
    assert _mlflow_status(tmp_path) == ["KILLED"]

    succeed(tmp_path, "resume=stopped")
    assert_same(uninterrupted, run / "last.safetensors")
    assert _mlflow_status(tmp_path) == ["FINISHED"], "the same MLflow run goes on"


def test_a_run_that_is_going_on_is_not_continued_beside_itself(tmp_path: Path) -> None:
    process = start(tmp_path, *TINY, "name=busy", "tracking.enabled=false")
    wait_for(lambda: (tmp_path / "runs" / "busy" / "config.json").is_file(), process)
    second = start(tmp_path, "resume=busy")
    _, err = second.communicate(timeout=60)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert second.returncode == 2
    assert "going on in another process" in err


def test_killed_worker_is_replaced_and_ends_with_identical_weights(
    tmp_path: Path, uninterrupted: dict
) -> None:
    process = start(tmp_path, *LONGER, "name=killed", "tracking.enabled=false")
    run = tmp_path / "runs" / "killed"
    wait_for(lambda: len(events(run, "epoch")) >= 1, process)
    workers = ray_workers(process)
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert len(events(run, "start")) == 2, "the worker group was started again"
    assert "the workers were started again" in out
    assert_same(uninterrupted, run / "last.safetensors")


def test_killed_driver_leaves_nobody_behind_and_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, uninterrupted: dict
) -> None:
    process = start(
        tmp_path, *LONGER, "name=killed", "checkpoint.every_steps=1", "tracking.enabled=false"
    )
    run = tmp_path / "runs" / "killed"
    wait_for(lambda: len(events(run, "epoch")) >= 1, process)
    workers = ray_workers(process)
    assert len(workers) == 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers whose driver died do not go on"
    assert not events(run, "finished"), "killed in the middle"
    newest = max((run / "checkpoints").glob("step-*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)

    out = succeed(tmp_path, "resume=killed")
    assert f"warning: checkpoint {newest} is damaged" in out
    assert "the one before it is used" in out
    continued = events(run, "start")[1]["global_step"]
    assert continued == int(newest.name.split("-")[1]) - 1
    assert_same(uninterrupted, run / "last.safetensors")


def test_the_time_limit_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    done = raymi(tmp_path, *TINY, "name=late", "limit.hours=1e-9", "tracking.enabled=false")
    assert done.returncode == 75, done.stdout + done.stderr
    assert "to continue: python -m raymi.train resume=late" in done.stdout
    assert len(events(tmp_path / "runs" / "late", "stopped")) == 1, "with a checkpoint"


def test_ctrl_c_before_the_workers_are_there_ends_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, *TINY, "name=early", "tracking.enabled=false")
    wait_for(lambda: (tmp_path / "runs" / "early" / "config.json").is_file(), process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err


def _mlflow_status(folder: Path) -> list[str]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raymi")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]
