"""Runs raymi's commands as a user does, in processes of their own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

TIMEOUT = 500  # seconds; a run of these tests takes a minute or two

TINY = ("data.limit=300", "optim.epochs=3", "attack.steps=2", "evaluation.steps=4")
"""Settings with which a quickstart trains for seconds."""

SLOW_MODEL = "model.name=slow_model:Net"
"""A network that is slow until the test has seen what it waits for: see `write_slow_model`."""

_SLOW_MODEL = """
import itertools
import sys
import time
from math import inf
from pathlib import Path
from torch import nn

forwards = itertools.count()

class Net(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.fc = nn.Linear(3 * image_size**2, num_classes)

    def forward(self, x):
        release = Path({release!r})
        if not release.exists():
            num = next(forwards)
            time.sleep(0.1 if num < 30 else 0.5)
            in_worker = "default_worker" in sys.argv[0]  # of Ray
            while in_worker and num >= {halt_after} and not release.exists():
                time.sleep(0.1)
        return self.fc(x.flatten(1))
"""


def write_slow_model(folder: Path, halt_after: float = math.inf) -> Path:
    """Writes the network of `SLOW_MODEL` for commands in `folder`.

    A first epoch takes seconds, what follows a minute: a test can catch the command in the middle,
    on a busy machine, too.

    Args:
        halt_after: forward passes after which a worker of Ray waits for the file; a training that
            waits cannot answer a signal.

    Returns:
        The file that ends its slowness, to be made by the test.
    """
    sys.modules.pop("slow_model", None)  # that of another test
    release = folder / "release"
    (folder / "slow_model.py").write_text(
        _SLOW_MODEL.format(release=str(release), halt_after=halt_after)
    )
    return release


class Ended(NamedTuple):
    """End of a command that was called in this process."""

    code: int
    out: str
    err: str


def environment(**extra: str) -> dict[str, str]:
    """Returns the environment of a user, without variables that the test run has for itself."""
    own = ("RAY_", "MLFLOW_", "OMP_")
    return {k: v for k, v in os.environ.items() if not k.startswith(own)} | extra


def start(folder: Path, *words: str, module: str = "raymi.train", **env: str) -> subprocess.Popen:
    """Starts a command in `folder`, its output in pipes.

    It answers Ctrl-C, also where a script started the tests in the background, which ignores it.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def succeed(folder: Path, *words: str, **env: str) -> str:
    """Runs a command that must succeed; returns its standard output."""
    return _end(start(folder, *words, **env), 0)[0]


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for the end of a command that must have this exit code; returns all of its output."""
    return "".join(_end(process, code))


def _end(process: subprocess.Popen, code: int) -> tuple[str, str]:
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {TIMEOUT} s:\n{out}\n{err}") from None
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in out + err, out + err
    return out, err


def events(run_folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Returns the journal of a run, or its events of one kind."""
    journal = run_folder / "journal.jsonl"
    lines = journal.read_text().splitlines() if journal.is_file() else []
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line))
        except ValueError:  # still being written
            continue
    return [event for event in parsed if kind in (None, event["kind"])]


def processes_below(process: subprocess.Popen, *titles: str) -> list[psutil.Process]:
    """Returns processes that a command has started, with one of these words in their titles."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(title in " ".join(child.cmdline()) for title in titles):
                found.append(child)
    return found


def wait_for(condition: Any, process: subprocess.Popen, seconds: float = 300) -> None:
    """Waits until `condition()` holds; kills the command and fails if it ends or time is up."""
    deadline = time.monotonic() + seconds
    try:
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.05)
    except BaseException:
        process.kill()
        raise
