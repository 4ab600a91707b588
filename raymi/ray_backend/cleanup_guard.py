"""Process that ends and removes a local Ray after its driver, even when the driver was killed.

Run as `python cleanup_guard.py FOLDER` with a pipe from the driver as standard input, which closes
when the driver ends. Ray's agents outlive a killed driver by two minutes, and Ray never removes its
folder. The process needs the standard library and, at its end, psutil.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

PREFIX = "raymi-"
"""Prefix of the folders of local Rays."""

LOCK = ".ray-lock"
"""File in such a folder that its driver and its guard lock."""

INSIDE = "r"
"""Ray's own folder in such a folder: one character, as paths of sockets must be short."""

_END_SECONDS = 3.0  # for processes that Ray has asked to end
_KILL_SECONDS = 5.0


def main(folder: Path) -> None:
    """Removes folders of killed drivers, waits for its own driver, and cleans up after it."""
    driver = os.getppid()  # keeps Ray's logs open, also after the shutdown
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # meant for the driver, which ends first
    for abandoned in abandoned_folders(folder.parent):
        clean_up(abandoned)
    sys.stdin.buffer.read()
    clean_up(folder, driver)


def clean_up(folder: Path, driver: int = 0) -> None:
    """Ends the processes that use a local Ray's folder, except its driver, and removes it."""
    deadline = time.monotonic() + _END_SECONDS
    while processes_using(folder, driver) and time.monotonic() < deadline:
        time.sleep(0.05)
    deadline = time.monotonic() + _KILL_SECONDS
    while (pids := processes_using(folder, driver)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def abandoned_folders(base: Path) -> list[Path]:
    """Returns the user's folders of local Rays whose driver and guard are gone."""
    found = []
    for folder in base.glob(f"{PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid() or folder.is_symlink():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # being created or removed
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            found.append(folder)
        finally:
            os.close(lock)
    return found


def processes_using(folder: Path, driver: int = 0) -> list[int]:
    """Returns IDs of the user's processes that name Ray's folder or have a file of it open.

    All processes of Ray do, as it holds their logs. Omits the driver and this process.
    """
    import psutil

    inside, spared, found = str(folder / INSIDE) + os.sep, {os.getpid(), driver}, []
    for process in psutil.process_iter():
        try:
            if process.pid in spared or process.uids().real != os.getuid():
                continue
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            words = process.cmdline()
            if any(inside in word for word in words) or any(
                file.path.startswith(inside) for file in process.open_files()
            ):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
