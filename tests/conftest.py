"""What all tests share: one Ray head and one MLflow server for each process, and the order.

Each process computes with one thread: on networks this small, threads wait for each other longer
than they compute. Commands that tests start have the user's own number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from mlflow_server import Server
from ray_head import AUTH, Head

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported
os.environ.update(AUTH)  # read when Ray is first imported


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups tests for pytest-xdist: those that start Ray, then the other modules, slow ones first.

    One process runs all of Ray's tests, so that they share a head and leave a core to the others.
    """
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.slow)
        group = "ray" if item.get_closest_marker("ray") else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def order(item: pytest.Item) -> tuple[bool, bool]:
        return not item.get_closest_marker("ray"), item.path not in slow

    items.sort(key=order)


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head with 2 CPUs; use `joined_ray`, which leaves it free for the next test."""
    head = Head(tmp_path_factory.mktemp("ray-head") / "log.txt")
    yield head
    head.stop()


@pytest.fixture
def joined_ray(ray_head: Head, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    """The session's head, joined by commands in this process; others get its `env`."""
    for name, value in ray_head.env.items():
        monkeypatch.setenv(name, value)
    yield ray_head
    ray_head.wait_until_idle()


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An MLflow server; each test has an experiment of its own in it."""
    server = Server(tmp_path_factory.mktemp("mlflow-server"))
    server.start()
    yield server
    server.kill()
