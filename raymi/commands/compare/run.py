"""The runs of a comparison: one process for each, several at once, continued where they stopped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymi.commands.cli import EXIT_USER
from raymi.commands.compare.results import RunResult, finished_result
from raymi.config import Config
from raymi.runs.events import MODELS
from raymi.runs.record import read_record
from raymi.runs.run_folder import RunFolder
from raymi.signals import Signals, Stopped
from raymi.weights import read_weights_file

PROGRAM = (sys.executable, "-m", "raymi.standalone")
PATIENCE = 60.0  # seconds in which a run may write its checkpoint before it is killed
_DIVERGED = re.compile(r"error: expected finite .* at step (\d+) ")


@dataclass(frozen=True)
class ArmRun:
    """One arm and seed: its folder, its settings, and the words of `raymi.standalone` for them."""

    arm: str
    seed: int
    folder: RunFolder
    config: Config
    words: tuple[str, ...]

    @property
    def log(self) -> Path:
        """What the run's process printed, of the last session."""
        return self.folder.path / "output.log"

    def result(self) -> RunResult | None:
        """How the run ended, as a result that stays; None where it has to be run or continued.

        Losses that are not finite are a result: running again would lead there again.
        """
        finished = finished_result(self.arm, self.seed, read_record(self.folder))
        if finished is not None:
            return finished
        if match := _DIVERGED.match(_last_line(self.log)):
            return RunResult(self.arm, self.seed, "diverged", step=int(match[1]))
        return None

    def failure(self, code: int) -> RunResult:
        """The result of a run whose process ended with an exit code and no result."""
        reason = _last_line(self.log) or f"exit code {code}"
        return RunResult(self.arm, self.seed, "failed", reason=reason)


@dataclass(frozen=True)
class Slot:
    """A share of this machine: what a process in it has in its environment."""

    environment: Mapping[str, str]


def slots(parallel: int, num_cores: int, gpus: Sequence[str]) -> list[Slot]:
    """As many equal shares of the cores as runs go on at once, each with one of the GPUs in turn.

    Args: parallel; num_cores, CPU cores to be shared; gpus, names as in CUDA_VISIBLE_DEVICES.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, num_cores // parallel)), "PYTHONUNBUFFERED": "1"}
    if not gpus:
        return [Slot(threads)] * parallel
    return [Slot({**threads, "CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}) for i in range(parallel)]


def run_all(
    runs: Sequence[ArmRun], places: Sequence[Slot], ended: Callable[[RunResult], None]
) -> int | None:
    """Runs everything, in order, as many at once as there are places.

    On SIGINT or SIGTERM every run is asked to write a checkpoint and end; those that take longer
    than `PATIENCE`, or all at a second signal, are killed.

    A run that fails does not stop the others, except by what a user has to put right first, such as
    missing data: then no further one begins.

    Args: ended, is told of each run that came to an end by itself.
    Returns: the signal that ended it all, or None.
    """
    waiting, free = deque(runs), list(reversed(places))
    going: list[_Going] = []
    with Signals() as signals:
        try:
            while (waiting or going) and signals.received is None:
                while waiting and free:
                    going.append(_start(waiting.popleft(), free.pop()))
                for one in [g for g in going if g.process.poll() is not None]:
                    going.remove(one)
                    free.append(one.slot)
                    ended(one.run.result() or one.run.failure(one.process.returncode))
                    if one.process.returncode == EXIT_USER:  # it would stop the others as well
                        waiting.clear()
                time.sleep(0.05)
            if signals.received is not None:
                _end(going)
        except Stopped:  # a second signal
            pass
        finally:
            for one in going:
                one.process.kill()
            for one in going:
                one.process.wait()
    return signals.received


@dataclass(frozen=True)
class _Going:
    run: ArmRun
    slot: Slot
    process: subprocess.Popen[bytes]


def _start(run: ArmRun, slot: Slot) -> _Going:
    """In a session of its own: Ctrl-C is for us, who then ask it to stop."""
    run.folder.path.mkdir(parents=True, exist_ok=True)
    with run.log.open("wb") as log:
        process = subprocess.Popen(
            [*PROGRAM, *run.words],
            env={**os.environ, **slot.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Going(run, slot, process)


def _end(going: Sequence[_Going]) -> None:
    """Asks for the end until it has come: a run that is only beginning takes the file away."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        left = [one for one in going if one.process.poll() is None]
        if not left:
            break
        for one in left:
            one.run.folder.stop_file.touch()
        time.sleep(0.1)


def same_weights(one: RunFolder, other: RunFolder) -> bool:
    """Whether two finished runs have the same best and last weights, bit for bit."""
    return all(_same_file(one.weights(which), other.weights(which)) for which in MODELS)


def _same_file(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return one.is_file() == other.is_file()
    a, b = read_weights_file(one).tensors, read_weights_file(other).tensors
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and a[k].numpy().tobytes() == b[k].numpy().tobytes()
        for k in a
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
