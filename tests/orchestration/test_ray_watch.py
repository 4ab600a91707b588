"""The loss of Ray's head is noticed, a short absence is not taken for one."""

from __future__ import annotations

import socket

import pytest

from raymi.orchestration import ray_watch


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """A listening socket in place of a head, watched by `ray_watch`."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setattr(ray_watch, "_watch", ray_watch._Watch(address))
    return listener


def test_a_head_that_answers_is_not_lost(head: socket.socket) -> None:
    ray_watch.check_after_an_error()
    ray_watch.check()
    assert not ray_watch.is_lost()
    head.close()


def test_an_error_without_a_head_is_its_loss(head: socket.socket) -> None:
    head.close()
    with pytest.raises(ray_watch.RayLost, match="start the cluster again"):
        ray_watch.check_after_an_error()
    assert ray_watch.is_lost()


def test_a_head_is_lost_after_some_time_and_not_before(
    head: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    head.close()
    ray_watch.check()
    monkeypatch.setattr(ray_watch, "LOST_SECONDS", 0.0)
    with pytest.raises(ray_watch.RayLost, match="does not answer any more"):
        ray_watch.check()


def test_without_ray_nothing_is_checked() -> None:
    ray_watch.check()
    ray_watch.check_after_an_error()
    assert not ray_watch.is_lost()
