"""The same command under `ray job submit`: joins that cluster, and the job ends as the run does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from raymi_command import TINY, environment, events

pytestmark = pytest.mark.slow
RAY = str(Path(sys.executable).with_name("ray"))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the dashboard of a Ray head with 2 CPUs on this machine."""
    port, dashboard_port, agent_http, agent_grpc = (_free_port() for _ in range(4))
    log = (tmp_path_factory.mktemp("head") / "log.txt").open("w")
    head = subprocess.Popen(
        [
            RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats",
            f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
            # Of its own: with a port that another Ray has, the agent never takes a job.
            f"--dashboard-agent-listen-port={agent_http}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
        ],
        env=environment(RAY_AUTH_MODE="token"),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard_port}"
    try:
        for needed in (dashboard_port, agent_http):
            _wait_until_up(needed, head, Path(log.name))
        yield address
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def _wait_until_up(port: int, head: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert head.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def _submit(
    address: str, home: Path, *words: str, module: str = "raymi.train", **metadata: str
) -> subprocess.CompletedProcess:
    of_job = ("--address", address, "--metadata-json", json.dumps(metadata))
    return subprocess.run(
        [RAY, "job", "submit", *of_job, "--", "python", "-m", module, *words],
        env=environment(RAY_AUTH_MODE="token"),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_job_trains_on_the_cluster_that_it_was_submitted_to(dashboard: str, tmp_path: Path) -> None:
    done = _submit(
        dashboard, tmp_path, *TINY, "name=job", f"out={tmp_path / 'runs'}",
        "tracking.enabled=false", git_commit="0123abc-dirty",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PGD-4" in done.stdout
    assert events(tmp_path / "runs" / "job", "finished")
    about = json.loads((tmp_path / "runs" / "job" / "run.json").read_text())
    assert (about["git_commit"], about["git_dirty"]) == ("0123abc", "true")
    assert about["job"].startswith("raysubmit_")
    # Its evaluation takes as many workers as the cluster has room for.
    results = tmp_path / "evaluations"
    done = _submit(
        dashboard, tmp_path, f"model={tmp_path / 'runs' / 'job'}", "attacks=pgd-3", "samples=40",
        "checks=0", f"results={results}", "tracking.enabled=false", module="raymi.evaluate",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 images of digits-test-40" in done.stdout
    assert "on 2 workers" in done.stdout
    assert len(list(results.glob("job-best-*/outcomes.parquet"))) == 1


def test_exit_code_of_the_job_is_the_one_of_the_run(dashboard: str, tmp_path: Path) -> None:
    done = _submit(dashboard, tmp_path, "eps=8", f"out={tmp_path / 'runs'}")
    assert done.returncode != 0
    assert "8/255" in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_the_cluster_has_are_refused_at_once(
    dashboard: str, tmp_path: Path
) -> None:
    done = _submit(
        dashboard, tmp_path, "scaling.workers=5", f"out={tmp_path / 'runs'}",
        "tracking.enabled=false",
    )  # fmt: skip
    assert done.returncode != 0
    assert (
        "scaling.workers=5 with 1 CPU each, but the nodes of the cluster have places for 2"
        in done.stdout + done.stderr
    )
