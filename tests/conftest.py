"""Ray head and MLflow server of each test process, and order of the tests.

Each process computes with one thread: on networks this small, threads wait for each other longer
than they compute. Commands that tests start have the user's own number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Server
from ray_head import AUTH, PRIORITY, Head
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported
os.environ.update(AUTH)  # read when Ray is first imported
os.environ.update(PRIORITY)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders files for pytest-xdist: those that use Ray, other slow ones, the rest."""
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not _uses_ray(item.path), item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Scheduling(config, log)


class _Scheduling(LoadScopeScheduling):
    """Scheduler that gives all files that use Ray to one process, the others file by file.

    Tests that use Ray share a head; starting it twice at a time is slower than once after the
    other. (`--dist loadgroup` of pytest-xdist 3.8 has no effect with pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if _uses_ray(self.config.rootpath / file) else file


@cache
def _uses_ray(file: Path) -> bool:
    return "pytest.mark.ray" in file.read_text()


@pytest.fixture(autouse=True)
def usual_torch() -> Iterator[None]:
    """Resets torch's number of threads, which a command in this process may have set.

    oneDNN must be on: `torch.export` turns it off while it traces, and two threads that trace at
    the same time leave it off, which changes the last bits of later tests.
    """
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        is_on = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.set_flags(True)
        assert is_on, "a thread of this test still traces a network, or has left oneDNN off"


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head with 2 CPUs; use `joined_ray`, which leaves it free for the next test."""
    head = Head(tmp_path_factory.mktemp("ray-head") / "log.txt")
    yield head
    head.stop()


@pytest.fixture
def joined_ray(ray_head: Head, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    """The session's head, joined by commands in this process; others get its `env`."""
    ray_head.join(monkeypatch)
    yield ray_head
    ray_head.wait_until_idle()


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An MLflow server; each test has an experiment of its own in it."""
    server = Server(tmp_path_factory.mktemp("mlflow-server"))
    server.start()
    yield server
    server.kill()
