"""Real processes under torchrun that are killed with -9: the same command ends with the same bits.

tests/engine/test_kills.py continues runs from every step, without a command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from raymi_command import environment, events
from undisturbed import assert_same_weights, undisturbed

from raymi.runs.checkpoint import load_checkpoint
from raymi.runs.run_folder import RunFolder

pytestmark = pytest.mark.exhaustive

SETTINGS = (
    "data.limit=100", "data.image_size=8", "model.width=0.5", "mi.hidden=16",
    "mi.base_width=4", "mi.depth=1", "optim.batch_size=40", "epochs=2", "attack.steps=60",
    "validation.steps=2", "evaluation.steps=2", "checkpoint.every_steps=2", "tracking.log_every=1",
    "optim.ema=0.9",
)  # fmt: skip
"""85 images in steps of 40, 40 and 5; many steps of the attack, so that a step can be caught."""

STAGED = ("mi.schedule=staged", "mi.pretrain_epochs=2", "mi.estimator_epochs=2")
EVALUATED = ("last", "best", "last-averaged", "best-averaged")
PLACES = {
    "joint": {"classifier": 4},
    "staged": {"pretraining": 4, "estimators": 10, "classifier": 16},
}
"""Steps of the run after which a process is killed, by phase: the first of the three steps of the
second epoch, with a checkpoint of it."""


def start(folder: Path, workers: int, *words: str) -> subprocess.Popen:
    """The command on several workers, its output in a file."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}")
    command = (sys.executable, *launcher, "-m", "raymi.standalone", "name=run", *SETTINGS, *words)
    with (folder / "output").open("a") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment(OMP_NUM_THREADS="1"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def finish(folder: Path, workers: int, *words: str) -> Path:
    """Runs the command to its end; returns the folder of the run."""
    process = start(folder, workers, *words)
    try:
        assert process.wait(400) == 0, (folder / "output").read_text()
    finally:
        process.kill()
    return folder / "runs" / "run"


def kill_at(folder: Path, step: int, process: subprocess.Popen, whom: str) -> None:
    """Kills one worker, or the launcher and all workers, after a step; returns when all ended."""
    launcher, run = psutil.Process(process.pid), folder / "runs" / "run"
    deadline = time.monotonic() + 300
    try:
        while not any(e["global_step"] >= step for e in events(run, "step")):
            assert process.poll() is None, (folder / "output").read_text()
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.01)
        family = [launcher, *launcher.children(recursive=True)]
        workers = [p for p in family[1:] if "raymi.standalone" in p.cmdline()]
        for victim in workers[-1:] if whom == "worker" else family:
            os.kill(victim.pid, signal.SIGKILL)
        assert process.wait(120) != 0
        _, left = psutil.wait_procs(family, timeout=60)
        assert not left
        assert not events(run, "finished")
    finally:
        for left_over in launcher.children(recursive=True) if launcher.is_running() else []:
            left_over.kill()
        process.kill()


@pytest.mark.parametrize(
    ("workers", "schedule", "whom"),
    [(2, "joint", "worker"), (2, "staged", "worker"), (3, "staged", "all")],
)
def test_a_run_killed_in_every_phase_ends_with_the_same_bits(
    workers: int, schedule: str, whom: str, tmp_path: Path
) -> None:
    words = STAGED if schedule == "staged" else ()
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = undisturbed(tmp_path / "whole", *SETTINGS, *words, workers=workers)
    for phase, step in PLACES[schedule].items():
        kill_at(tmp_path / "killed", step, start(tmp_path / "killed", workers, *words), whom)
        position = load_checkpoint(tmp_path / "killed" / "runs" / "run" / "checkpoints")["position"]
        assert (position["phase"], position["epoch"]) == (phase, 1)
        assert position["step"] > 0, "within the epoch"
    killed = finish(tmp_path / "killed", workers, *words)
    starts = events(killed, "start")
    assert len(starts) == 1 + len(PLACES[schedule]), "every launch continued"
    assert_same_weights(whole, RunFolder(killed), *EVALUATED)
    first, second = (load_checkpoint(run / "checkpoints") for run in (whole.path, killed))
    assert_same(first, second)


def assert_same(one: object, other: object) -> None:
    """Nested values are equal, tensors bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, torch.Tensor):
        assert one.equal(other)
    else:
        assert one == other
