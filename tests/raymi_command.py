"""Runs raymi's commands as a user does: in their own process, in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

TIMEOUT = 500  # seconds; a run of these tests takes a minute or two

TINY = ("data.limit=300", "optim.epochs=3", "attack.steps=2", "evaluation.steps=4")
"""Settings with which a quickstart trains for seconds."""

UNHURRIED = "model.name=mine:Net"
"""A network that takes its time, until a file says that the test has seen what it waited for."""

_UNHURRIED_MODEL = """
import time
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.fc = nn.Linear(3 * image_size**2, num_classes)

    def forward(self, x):
        if not Path({hurry!r}).exists():
            time.sleep(0.15)
        return self.fc(x.flatten(1))
"""


def unhurried_model(folder: Path) -> Path:
    """Makes the network of `UNHURRIED` for commands in `folder`; the file that hurries it."""
    hurry = folder / "hurry"
    (folder / "mine.py").write_text(_UNHURRIED_MODEL.format(hurry=str(hurry)))
    return hurry


def environment(**extra: str) -> dict[str, str]:
    """The environment of a user: nothing of the surrounding test run, but for how it speaks to a
    Ray: one that was started in this process has set that for all that come after it."""
    own = ("RAY_", "MLFLOW_", "OMP_")
    kept = {k: v for k, v in os.environ.items() if k == "RAY_AUTH_MODE" or not k.startswith(own)}
    return kept | extra


def start(folder: Path, *words: str, module: str = "raymi.train", **env: str) -> subprocess.Popen:
    """Starts a command in `folder`; output goes to its pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess:
    """Runs a command to its end."""
    process = start(folder, *words, **env)
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {TIMEOUT} s:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def succeed(folder: Path, *words: str, **env: str) -> str:
    """Runs a command that must end well; its standard output."""
    done = run(folder, *words, **env)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def events(run_folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The journal of a run, or its events of one kind."""
    journal = run_folder / "journal.jsonl"
    lines = journal.read_text().splitlines() if journal.is_file() else []
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line))
        except ValueError:  # being written right now
            continue
    return [event for event in parsed if kind in (None, event["kind"])]


def ray_workers(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes in which a command under Ray trains."""
    workers = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                workers.append(child)
    return workers


def wait_for(condition: Any, process: subprocess.Popen, seconds: float = 240) -> None:
    """Waits until `condition()` holds; fails if the process ends or the time is up, and leaves
    nobody behind."""
    deadline = time.monotonic() + seconds
    try:
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.05)
    except BaseException:
        process.kill()
        raise
