"""Waits for Ray have a time limit and react to signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest
from ray_head import Head

from raymi.ray_backend.init_thread import NotConnected, RayConnection

HANGS = """
import sys
import threading
from raymi.commands.cli import run_command
from raymi.errors import UserError
from raymi.ray_backend.init_thread import NotConnected, RayConnection

def body(words):
    connection = RayConnection(threading.Event().wait)
    try:
        connection.start(0.2, lambda: None)
    except NotConnected as error:
        raise UserError(f"Ray: {error}") from None
    finally:
        connection.end(0.1)

sys.exit(run_command(body, []))
"""


CONNECTS = """
import signal
import sys
import ray
from raymi.ray_backend.init_thread import RayConnection

received = []
signal.signal(signal.SIGTERM, lambda signum, frame: received.append(signum))
connection = RayConnection(lambda: ray.init(log_to_driver=False))
connection.start(300.0, lambda: None)
signal.raise_signal(signal.SIGTERM)
seconds_to_abort = signal.alarm(0)
connection.end(60.0)
print(received, seconds_to_abort)
"""


@pytest.mark.ray
def test_sigterm_reaches_the_handler_of_a_connected_driver_alone(joined_ray: Head) -> None:
    command = [sys.executable, "-c", CONNECTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.stdout == f"[{signal.SIGTERM}] 0\n", done.stderr


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
    connection = RayConnection(released.wait)
    start = time.monotonic()
    with pytest.raises(Stopped):
        connection.start(600.0, stop)
    assert time.monotonic() - start < 60
    released.set()
    connection.end(60.0)


def test_the_error_is_the_cause() -> None:
    def fail() -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    connection = RayConnection(fail)
    with pytest.raises(NotConnected) as failed:
        connection.start(60.0, lambda: None)
    assert "AF_UNIX" in str(failed.value.__cause__)
    connection.end(60.0)
