"""Runs of a comparison: one process each, several at a time, resumed from their checkpoints."""

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

PROGRAM = (sys.executable, "-m", "raymi.standalone")
STOP_SECONDS = 60.0  # for a run to write its checkpoint before it is killed

Slot = Mapping[str, str]
"""Share of this machine, as environment variables of a process."""

_DIVERGED = re.compile(r"error: expected finite .* at step (\d+) ")


@dataclass(frozen=True)
class ArmRun:
    """Run of one arm and seed.

    Attributes:
        arm: variant of the recipe.
        seed: of the run.
        folder: of the run.
        config: its settings.
        words: the same settings as arguments of `raymi.standalone`.
    """

    arm: str
    seed: int
    folder: RunFolder
    config: Config
    words: tuple[str, ...]

    @property
    def log(self) -> Path:
        """Output of the process of the last session."""
        return self.folder.path / "output.log"

    def result(self) -> RunResult | None:
        """Returns the final result of the run; None if it must be started or resumed.

        Losses that are not finite are a final result, as the run is deterministic.
        """
        finished = finished_result(self.arm, self.seed, read_record(self.folder))
        if finished is not None:
            return finished
        if match := _DIVERGED.match(_last_line(self.log)):
            return RunResult(self.arm, self.seed, "diverged", step=int(match[1]))
        return None

    def failure(self, code: int) -> RunResult:
        """Returns the result of a run whose process exited with `code` and without a result."""
        reason = _last_line(self.log) or f"exit code {code}"
        return RunResult(self.arm, self.seed, "failed", reason=reason)


def slots(parallel: int, num_cores: int, gpus: Sequence[str]) -> list[Slot]:
    """Returns equal shares of the CPU cores, with the GPUs assigned in turn.

    Args:
        parallel: number of slots.
        num_cores: CPU cores to share.
        gpus: names as in CUDA_VISIBLE_DEVICES.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, num_cores // parallel)), "PYTHONUNBUFFERED": "1"}
    if not gpus:
        return [threads] * parallel
    return [{**threads, "CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(parallel)]


def run_all(
    runs: Sequence[ArmRun], places: Sequence[Slot], on_result: Callable[[RunResult], None]
) -> int | None:
    """Starts the runs in order, one in each slot at a time.

    SIGINT or SIGTERM lets every run write a checkpoint and end; after `STOP_SECONDS`, or at a
    second signal, the remaining ones are killed. A failed run does not stop the others, unless the
    cause is invalid input, such as missing data: then no other run is started.

    Args:
        runs: to start or resume.
        places: slots of this machine.
        on_result: called with the result of each run that ended by itself.

    Returns:
        The signal that stopped the runs; None without one.
    """
    pending, free = deque(runs), list(reversed(places))
    active: list[_Active] = []
    with Signals() as signals:
        try:
            while (pending or active) and signals.received is None:
                while pending and free:
                    active.append(_start(pending.popleft(), free.pop()))
                for one in [a for a in active if a.process.poll() is not None]:
                    active.remove(one)
                    free.append(one.slot)
                    on_result(one.run.result() or one.run.failure(one.process.returncode))
                    if one.process.returncode == EXIT_USER:  # would fail the others as well
                        pending.clear()
                time.sleep(0.05)
            if signals.received is not None:
                _stop(active)
        except Stopped:  # a second signal
            pass
        finally:
            for one in active:
                one.process.kill()
            for one in active:
                one.process.wait()
    return signals.received


@dataclass(frozen=True)
class _Active:
    run: ArmRun
    slot: Slot
    process: subprocess.Popen[bytes]


def _start(run: ArmRun, slot: Slot) -> _Active:
    """Starts a process in a new session, so that Ctrl-C reaches this process alone."""
    run.folder.path.mkdir(parents=True, exist_ok=True)
    with run.log.open("wb") as log:
        process = subprocess.Popen(
            [*PROGRAM, *run.words],
            env={**os.environ, **slot},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Active(run, slot, process)


def _stop(active: Sequence[_Active]) -> None:
    """Touches the stop files until all runs have ended: a run removes the file at its start."""
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        alive = [one for one in active if one.process.poll() is None]
        if not alive:
            break
        for one in alive:
            one.run.folder.stop_file.touch()
        time.sleep(0.1)


def same_weights(one: RunFolder, other: RunFolder) -> bool:
    """Returns True if two finished runs have equal best and last weights, bit for bit."""
    return all(_same_file(one.weights(which), other.weights(which)) for which in MODELS)


def _same_file(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return one.is_file() == other.is_file()
    from raymi.weights import read_weights_file  # options import this module without torch

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
