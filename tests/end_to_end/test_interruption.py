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
from undisturbed import assert_same_weights, undisturbed

from raymi.engine.run_folder import RunFolder

pytestmark = pytest.mark.slow

LONGER = ("data.limit=300", "optim.epochs=16", "attack.steps=10", "evaluation.steps=4")
"""TINY, so long that workers whose driver died, which takes some seconds, are not done before."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run that nobody disturbed."""
    return undisturbed(tmp_path_factory.mktemp("whole"), *LONGER)


def test_signals_end_a_run_in_seconds_and_resume_ends_with_identical_weights(
    tmp_path: Path, whole: RunFolder
) -> None:
    run = tmp_path / "runs" / "stopped"
    words = (*LONGER, "name=stopped")
    for num, signum in enumerate((signal.SIGINT, signal.SIGTERM), start=1):
        before = len(events(run, "epoch"))
        process = start(tmp_path, *words)
        wait_for(lambda before=before: len(events(run, "epoch")) > before, process)
        if num == 1:
            _a_second_command_is_kept_out(tmp_path)
        began = time.monotonic()
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signum, err
        assert time.monotonic() - began < 30
        assert len(events(run, "stopped")) == num, "with a checkpoint"
        assert "python -m raymi.train resume=stopped" in out
        assert "Traceback" not in out + err
        assert not events(run, "finished")
        assert _mlflow_status(tmp_path) == ["KILLED"]
        words = ("resume=stopped",)

    succeed(tmp_path, *words)
    assert_same_weights(whole, RunFolder(run), "last")
    assert _mlflow_status(tmp_path) == ["FINISHED"], "the same MLflow run went on"


def _a_second_command_is_kept_out(home: Path) -> None:
    second = start(home, "resume=stopped")
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "going on in another process" in err


def test_killed_workers_are_replaced_and_a_killed_driver_leaves_nobody_behind(
    tmp_path: Path, whole: RunFolder
) -> None:
    words = ("name=killed", "checkpoint.every_steps=1", "tracking.enabled=false")
    process = start(tmp_path, *LONGER, *words)
    run = tmp_path / "runs" / "killed"
    wait_for(lambda: len(events(run, "epoch")) >= 1, process)
    first = ray_workers(process)
    assert len(first) == 2
    os.kill(first[1].pid, signal.SIGKILL)

    wait_for(lambda: len(events(run, "start")) == 2, process)
    before = len(events(run, "epoch"))
    wait_for(lambda: len(events(run, "epoch")) > before, process)
    workers = [worker for worker in ray_workers(process) if worker not in first]
    assert len(workers) == 2, "the worker group was started again"
    process.kill()
    out, _ = process.communicate()
    assert "the workers were started again" in out
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
    continued = events(run, "start")[2]["global_step"]
    assert continued == int(newest.name.split("-")[1]) - 1
    assert_same_weights(whole, RunFolder(run), "last")


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
