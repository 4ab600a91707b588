"""A Ray that a command starts for itself: private, on the loopback interface, gone with it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from ports import free_ports
from ray_head import Head
from raymi_command import (
    SLOW_MODEL,
    TINY,
    environment,
    events,
    finish,
    start,
    wait_for,
    write_slow_model,
)

pytestmark = [pytest.mark.slow, pytest.mark.ray]

WORDS = (*TINY, "scaling.workers=1", "mi.weight=0", "tracking.enabled=false")


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


def folder_of(driver: psutil.Process) -> Path:
    """Returns the private folder of a command's Ray, from the words of its server."""
    (server,) = (one for one in driver.children() if "gcs_server" in one.name())
    (word,) = (w for w in server.cmdline() if w.startswith("--session-dir="))
    return Path(word.removeprefix("--session-dir=")).parents[1]


def open_to_the_network(processes: list[psutil.Process]) -> list[str]:
    """Returns addresses on which processes listen, without those of the loopback interface."""
    return [
        f"{process.name()} {connection.laddr.ip}:{connection.laddr.port}"
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
        and not connection.laddr.ip.removeprefix("::ffff:").startswith(("127.", "::1"))
    ]


@pytest.mark.exhaustive
def test_a_killed_command_with_a_long_tmpdir_and_no_home_leaves_nothing_of_its_ray(
    tmp_path: Path,
) -> None:
    write_slow_model(tmp_path)
    run, home = tmp_path / "runs" / "killed", tmp_path / "home"
    home.write_text("a file, so that nothing can be written below it")
    long = tmp_path / ("scratch-local-user-" * 4 + "job.123")
    long.mkdir()
    cache = str(tmp_path / "cache")
    command = start(
        tmp_path, *WORDS, SLOW_MODEL, "name=killed",
        HOME=str(home), TMPDIR=str(long), RAYMI_CACHE=cache,
    )  # fmt: skip
    wait_for(lambda: events(run, "epoch"), command)
    try:
        driver = psutil.Process(command.pid)
        processes, folder = driver.children(recursive=True), folder_of(driver)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.getuid()
        assert len(processes) >= 8, "servers, agents and a worker"
        # PyTorch's store of a process group listens on all interfaces: no setting changes that.
        (store,) = open_to_the_network([driver, *processes])
        assert "RayTrainWorker" in store
    finally:
        command.kill()
        command.communicate()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == [], [process.cmdline()[:2] for process in alive]
    wait_until(lambda: not folder.exists(), 60)


@pytest.mark.exhaustive
def test_a_ray_that_does_not_start_is_one_message_and_leaves_no_run(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with subprocess.Popen([sys.executable, "-m", "http.server", str(port)], cwd=tmp_path) as other:
        wait_until(lambda: psutil.Process(other.pid).net_connections(), 60)
        try:
            command = start(tmp_path, *WORDS, "name=none", RAY_GCS_SERVER_PORT=str(port))
            _, errors = command.communicate(timeout=400)
        finally:
            other.kill()
    assert command.returncode == 2, errors
    assert errors.count("error:") == 1
    assert "Ray does not start on this machine" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "runs" / "none").exists(), "the name is free"


SLOW_START = """
import sys
from raymi import train
from raymi.ray_backend import connection
connection._START_SECONDS = 0.5
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.exhaustive
def test_a_ray_that_hangs_is_given_up_in_time_with_its_processes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW_START, *WORDS, "name=none"],
        cwd=tmp_path, env=environment(TMPDIR="/var/tmp"), capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Ray does not start on this machine (no answer within 0 s" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "none").exists()
    wait_until(lambda: not list(Path("/var/tmp").glob("raymi-*")), 60)


@pytest.mark.exhaustive
def test_a_worker_killed_for_its_memory_is_one_line_that_says_what_to_lower(tmp_path: Path) -> None:
    low = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    words = (*WORDS, "name=oom", "scaling.max_failures=0")
    output = finish(start(tmp_path, *words, **low), 1)
    assert "as their node ran low on memory" in output
    assert "lower optim.batch_size" in output
    assert "idle_worker" not in output


@pytest.mark.exhaustive
def test_the_loss_of_the_head_is_one_line_and_the_run_continues_elsewhere(tmp_path: Path) -> None:
    release, run = write_slow_model(tmp_path), tmp_path / "runs" / "lost"
    head = Head(tmp_path / "head.txt")
    try:
        words = (*TINY, "scaling.workers=1", "mi.weight=0", "checkpoint.every_steps=1", SLOW_MODEL)
        command = start(tmp_path, *words, "name=lost", **head.env)
        wait_for(lambda: events(run, "epoch"), command)
    finally:
        head.stop()
    output = finish(command, 1)
    assert "does not answer" in output
    assert "to continue: python -m raymi.train resume=lost" in output
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raymi")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FAILED"

    release.touch()
    finish(start(tmp_path, "resume=lost"))
    assert events(run, "finished")
    assert client.get_run(tracked.info.run_id).info.status == "FINISHED"
