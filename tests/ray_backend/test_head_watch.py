"""A lost head of Ray is detected; a short absence is no loss."""

from __future__ import annotations

import socket

import pytest

from raymi.ray_backend import head_watch


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """Fakes a head by a listening socket that `head_watch` probes."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setattr(head_watch, "_watch", head_watch._Watch(address))
    return listener


def test_a_head_that_answers_is_not_lost(head: socket.socket) -> None:
    head_watch.check_after_error()
    head_watch.check()
    assert not head_watch.head_lost()
    head.close()


def test_an_error_without_a_head_is_a_lost_head(head: socket.socket) -> None:
    head.close()
    with pytest.raises(head_watch.RayLost, match="start the cluster again"):
        head_watch.check_after_error()
    assert head_watch.head_lost()


def test_a_head_is_lost_after_the_time_limit(
    head: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    head.close()
    head_watch.check()
    monkeypatch.setattr(head_watch, "LOST_SECONDS", 0.0)
    with pytest.raises(head_watch.RayLost, match="does not answer"):
        head_watch.check()


def test_without_ray_nothing_is_checked() -> None:
    head_watch.check()
    head_watch.check_after_error()
    assert not head_watch.head_lost()
