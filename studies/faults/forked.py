"""Commands of raymi in forked processes: hundreds of calls without hundreds of imports."""

from __future__ import annotations

import importlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

COMMANDS = (
    "train", "tune", "evaluate", "select", "report", "compare", "probe", "export", "bench",
    "standalone",
)  # fmt: skip
"""All commands, each a module of raymi."""

STARTED = 77
"""Exit code of a command that has accepted its input and starts Ray."""

_MEMORY = 12 << 30  # bytes of address space: a command that uses more fails alone
_PATH = re.compile(r"(/tmp|/var/tmp|/dev/shm)/[^\s'\",:)]*")
_NUMBER_OF_TIME = re.compile(r"\b\d+(\.\d+)? ?(s|ms|h|min|hours|seconds)\b|\d\d:\d\d(:\d\d)?")


@dataclass(frozen=True)
class Ended:
    """Outcome of a command.

    Args:
        code: exit code; None: still running at the time limit.
        out: standard output.
        err: standard error.
    """

    code: int | None
    out: str
    err: str

    @property
    def has_traceback(self) -> bool:
        """True if the output has a traceback."""
        return "Traceback (most recent call last)" in self.out + self.err

    @property
    def answer(self) -> str:
        """Standard output without folders and times, which differ between equal calls."""
        return _NUMBER_OF_TIME.sub("TIME", _PATH.sub("PATH", self.out))


def load_commands() -> None:
    """Imports all commands, so that forked processes need not, and keeps torch to one thread."""
    torch.set_num_threads(1)  # a process with threads cannot be forked
    for variable in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_"))]:
        del os.environ[variable]
    for name in (*COMMANDS, "__main__"):
        importlib.import_module(f"raymi.{name}")
    for name in ("mlflow", "ray", "optuna", "scipy.stats", "sklearn.datasets", "matplotlib.pyplot"):
        importlib.import_module(name)


def call(folder: Path, command: str, words: Sequence[str], seconds: float = 120.0) -> Ended:
    """Calls `python -m raymi.COMMAND WORDS` in a folder, in a fork of this process.

    A command that starts Ray exits immediately, with code `STARTED`.

    Args:
        folder: current folder of the command.
        command: one of `COMMANDS`.
        words: command line.
        seconds: time limit.

    Returns:
        The outcome.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            _in_child(folder, command, words, out.fileno(), err.fileno())
        code = _wait(pid, seconds)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace"))
    return Ended(code, *texts)


def _in_child(folder: Path, command: str, words: Sequence[str], out: int, err: int) -> None:
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        import ray

        ray.init = lambda *args, **settings: _leave(STARTED)
        subprocess.Popen = _NoRuns  # type: ignore[misc]
        code = importlib.import_module(f"raymi.{command}").main(list(words))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(code)


class _NoRuns(subprocess.Popen[str]):
    """Process that is no run of raymi: `compare` starts its runs as processes."""

    def __init__(self, args: Any, *others: Any, **settings: Any) -> None:
        if "raymi." in str(args):
            _leave(STARTED)
        super().__init__(args, *others, **settings)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None
