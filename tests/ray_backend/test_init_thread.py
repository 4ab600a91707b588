"""Waits for Ray have a limit, and answer to signals."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from raymi.ray_backend.init_thread import NotConnected, RayHost

HANGS = """
import sys
import threading
from raymi.commands.cli import run_command
from raymi.errors import UserError
from raymi.ray_backend.init_thread import NotConnected, RayHost

def body(words):
    host = RayHost(threading.Event().wait)
    try:
        host.start(0.2, lambda: None)
    except NotConnected as error:
        raise UserError(f"Ray: {error}") from None
    finally:
        host.end(0.1)

sys.exit(run_command(body, []))
"""


def test_a_command_whose_ray_hangs_ends_with_its_message_and_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (2, "error: Ray: no answer within 0 s\n")


def test_a_check_ends_the_wait() -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    released = threading.Event()
    host = RayHost(released.wait)
    began = time.monotonic()
    with pytest.raises(Stopped):
        host.start(600.0, stop)
    assert time.monotonic() - began < 60
    released.set()
    host.end(60.0)


def test_what_went_wrong_is_the_cause() -> None:
    def fail() -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    host = RayHost(fail)
    with pytest.raises(NotConnected) as failed:
        host.start(60.0, lambda: None)
    assert "AF_UNIX" in str(failed.value.__cause__)
    host.end(60.0)
