"""A Ray head on this machine, as `ray start --head` makes one, for commands to join."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from parent_death import end_with_parent
from ports import free_ports
from raymi_command import environment, processes_below

RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS = 180.0
END_SECONDS = 60.0
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Environment variables with which the tests of this process speak to their clusters."""
PRIORITY = {"RAY_worker_niceness": "0"}
"""Priority of other tests, as raymi sets it; with Ray's niceness of 15 its workers hardly run."""
_BUSY = ("AttackWorker", "RayTrainWorker", "TrainController", "ImplicitFunc", "Trainable")
"""Processes of raymi's commands, by their titles in Ray."""


class Head:
    """A head with 2 CPUs and a dashboard.

    Attributes:
        dashboard: its address, for `ray job`.
        env: environment variables with which a command joins the cluster.
        process: `ray start`, below which all processes of the cluster are.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        port, dashboard, *agent = free_ports(4)
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.env = {"RAY_ADDRESS": f"127.0.0.1:{port}", **AUTH}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [
                    RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats",
                    "--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1",
                    f"--dashboard-port={dashboard}",
                    # With the default ports, the agent of another Ray would be asked for jobs.
                    f"--dashboard-agent-listen-port={agent[0]}",
                    f"--dashboard-agent-grpc-port={agent[1]}",
                ],
                env=environment(**AUTH, **PRIORITY, RAY_JOB_STOP_WAIT_TIME_S="60"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )  # fmt: skip
        try:
            for needed in (dashboard, agent[0]):
                self._wait_until_up(needed)
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self._log.read_text()
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                return
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)

    def join(self, patch: pytest.MonkeyPatch) -> None:
        """Lets commands in this process join the cluster."""
        for name, value in self.env.items():
            patch.setenv(name, value)

    def wait_until_idle(self) -> None:
        """Waits until no command uses the cluster, so that the next one finds it free."""
        deadline = time.monotonic() + END_SECONDS
        while left := processes_below(self.process, *_BUSY):
            assert time.monotonic() < deadline, [process.cmdline()[0] for process in left]
            time.sleep(0.1)

    def stop(self) -> None:
        """Kills all processes of the cluster."""
        processes = [psutil.Process(self.process.pid)]
        with suppress(psutil.NoSuchProcess):
            processes += processes[0].children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(processes[1:], timeout=END_SECONDS)
