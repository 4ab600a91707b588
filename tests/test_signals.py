"""Signals request a stop, end a block, and leave the earlier handlers in place."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymi import signals
from raymi.commands.cli import run_command
from raymi.signals import (
    BackgroundThread,
    Signals,
    Stopped,
    ended_by_sigterm,
    exit_without_cleanup,
    skip_cleanup,
)

BOTH = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def functions_of(thread: int) -> list[str]:
    """Returns the names of the functions that a thread is in."""
    stack = traceback.walk_stack(sys._current_frames()[thread])
    return [frame.f_code.co_name for frame, _ in stack]


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@BOTH
def test_the_first_signal_requests_a_stop(tmp_path: Path, signum: int):
    calls: list[None] = []
    with Signals(tmp_path / "stop", lambda: calls.append(None)) as received:
        assert not received.is_new()
        send(signum)
        assert (tmp_path / "stop").exists()
        assert calls == [None]
        assert received.received == signum
        assert received.name == signal.Signals(signum).name
        assert [received.is_new(), received.is_new()] == [True, False]
        received.check(work_has_begun=True)
        with pytest.raises(Stopped):
            received.check(work_has_begun=False)
        with pytest.raises(Stopped):
            received.check_before_work()


def test_a_requested_stop_has_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "STOP_SECONDS", -1.0)
    with Signals() as received:
        send(signal.SIGINT)
        with pytest.raises(Stopped):
            received.check(work_has_begun=True)


def test_the_second_signal_ends_immediately(tmp_path: Path):
    with Signals(tmp_path / "gone" / "stop"):
        send(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGTERM"):
            send(signal.SIGTERM)


def test_sigterm_ends_a_block():
    calls: list[None] = []
    with pytest.raises(Stopped, match="SIGTERM"), ended_by_sigterm(lambda: calls.append(None)):
        send(signal.SIGTERM)
    assert calls == [None]
    # a shell lets its background processes ignore SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), ended_by_sigterm():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_exit_code_of_a_command_equals_that_of_the_signal(capsys: pytest.CaptureFixture[str]):
    def body(_: list[str]) -> int:
        with ended_by_sigterm():
            send(signal.SIGTERM)
        return 0

    assert run_command(body, []) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    assert Stopped.of(KeyboardInterrupt()).exit_code == 130


def test_a_process_exits_without_cleanup_on_request_alone(monkeypatch: pytest.MonkeyPatch):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    exit_without_cleanup(3)
    assert codes == []
    monkeypatch.setattr(signals, "_skips_cleanup", False)
    skip_cleanup()
    exit_without_cleanup(3)
    assert codes == [3]


def test_an_exception_during_a_join_leaves_the_thread_alive():
    end = threading.Event()

    main = threading.get_ident()

    def work():
        while "join" not in functions_of(main):
            time.sleep(0.001)
        send(signal.SIGTERM)
        end.wait()

    thread = BackgroundThread("slow", work)
    assert not thread.is_alive()
    with ended_by_sigterm():
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            thread.join(60)
    assert thread.is_alive()
    end.set()
    thread.join(60)
    assert not thread.is_alive()
