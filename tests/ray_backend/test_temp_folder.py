"""The folder of a local Ray is private, has a short path, and is removed with its driver."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from raymi.errors import UserError
from raymi.ray_backend import cleanup_guard, temp_folder
from raymi.ray_backend.temp_folder import private_folder


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_a_long_tmpdir_gives_a_short_private_folder_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("scratch-local-user-" * 4 + "job.123")
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    with private_folder() as inside:
        assert len(f"{inside}/session_2026-11-30_14-21-15_123456_1234567/sockets/raylet") < 104
        assert stat.S_IMODE(inside.parent.stat().st_mode) == 0o700
        assert inside.parent.stat().st_uid == os.getuid()
    assert not inside.parent.exists()
    assert list(long.iterdir()) == []


def test_a_short_tmpdir_of_the_user_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    with private_folder() as inside:
        assert inside.parent.parent == Path("/var/tmp")


def test_without_a_short_folder_one_message_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, long = Path("/nowhere"), tmp_path / ("x" * 100)
    monkeypatch.setattr(temp_folder, "bases", lambda: [gone, long])
    with pytest.raises(UserError, match="set RAY_TMPDIR=FOLDER") as refused, private_folder():
        pass
    assert "/nowhere: No such file or directory" in str(refused.value)
    assert f"{long}: longer than" in str(refused.value)


DRIVER = """
import subprocess
import time
from raymi.ray_backend.temp_folder import private_folder

with private_folder() as inside:
    inside.mkdir()
    log = (inside / "agent.log").open("w")
    agent = subprocess.Popen(["sleep", "1000"], stdout=log, start_new_session=True)
    print(inside, agent.pid, flush=True)
    time.sleep(1000)
"""
"""Driver with an agent that outlives it, as Ray's do, and is known only by its open log."""


def test_a_killed_driver_leaves_no_process_and_no_folder() -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    folder, pid = driver.stdout.readline().split()
    agent = psutil.Process(int(pid))
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_until(lambda: not Path(folder).parent.exists())
    assert not agent.is_running() or agent.status() == psutil.STATUS_ZOMBIE


def test_the_end_of_a_session_spares_the_driver_with_open_logs() -> None:
    with private_folder() as inside:
        inside.mkdir()
        with (inside / "driver.log").open("w") as log:
            agent = subprocess.Popen(["sleep", "1000"], stdout=log)
            wait_until(
                lambda: cleanup_guard.processes_using(inside.parent, os.getpid()) == [agent.pid]
            )
            kept = os.dup(log.fileno())
    assert agent.wait(60) == -signal.SIGKILL
    os.close(kept)


def test_only_folders_without_driver_and_guard_are_abandoned(tmp_path: Path) -> None:
    with private_folder() as inside:
        assert inside.parent not in cleanup_guard.abandoned_folders(inside.parent.parent)
    left, just_made = tmp_path / "raymi-left", tmp_path / "raymi-made"
    for folder in (left, just_made):
        folder.mkdir()
    (left / cleanup_guard.LOCK).touch()
    assert cleanup_guard.abandoned_folders(tmp_path) == [left]
