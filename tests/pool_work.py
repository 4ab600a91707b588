"""Evaluation of a small network for tests of worker pools."""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import ensembles_of
from raymi.data import ImageSet
from raymi.evaluation.attack_task import AttackTask
from raymi.evaluation.blocks import CLEAN, Outcome, Schedule, Step
from raymi.evaluation.outcome_store import OutcomeStore
from raymi.evaluation.scheduler import LocalPool, Pool, run_schedule
from raymi.evaluation.worker_job import Attackers, WorkerJob

MINE = '''
import os
import time
import warnings
from pathlib import Path
import torch
from torch import nn
import raymi

class Plain:
    """A small network with fixed weights."""
    def load(self):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5))

class With(Plain):
    """The same network after another module."""
    def __init__(self, first):
        self.first = first
    def load(self):
        return nn.Sequential(self.first, super().load())

class WaitsFor(nn.Module):
    """Writes its process ID to a file and waits for another file."""
    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
    def forward(self, x):
        while not (self.folder / "go").exists():
            (self.folder / f"{os.getpid()}.pid").touch()
            time.sleep(0.02)
        return x

class Ends(nn.Module):
    def forward(self, x):
        os._exit(3)

class Fails(nn.Module):
    def __init__(self, message):
        super().__init__()
        self.message = message
    def forward(self, x):
        raise RuntimeError(self.message)

class Warns(nn.Module):
    """Warns in the name of raymi and of the user's module."""
    def forward(self, x):
        warnings.warn_explicit("odd pixels", UserWarning, raymi.__file__, 1)
        warnings.warn("mine alone")
        return x

class CannotBeLoaded:
    def load(self):
        return torch.load("/nowhere.pt")

class Pickled:
    """Cannot be unpickled."""
    def __reduce__(self):
        return _unpickled, ()

def _unpickled():
    raise ImportError("not on this node")

class EndsItsWorker:
    def __reduce__(self):
        return os._exit, (4,)
'''
THREAT, NAMES, SIZE = Threat("linf", 0.1), ("pgd-3", "autoattack-rand"), 10
ENSEMBLES = ensembles_of(NAMES, THREAT, 5)
SCHEDULE = Schedule(35, SIZE, ENSEMBLES)
FIRST = AttackTask("net", Step(CLEAN, 0, CLEAN, 0), torch.arange(SIZE))


def users_module(folder: Path) -> Any:
    """Writes and imports a user's module in a folder.

    Its name is derived from the folder's, as a process may import several.
    """
    name = "user_module_of_" + re.sub(r"\W", "_", folder.name)
    (folder / f"{name}.py").write_text(MINE)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def work(**sources: Any) -> WorkerJob:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (35, 3, 12, 12), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.arange(35) % 5, tuple("abcde"))
    return WorkerJob(sources, images, dict.fromkeys(sources, ENSEMBLES), THREAT, seed=3)


Found = Mapping[Step, tuple[Outcome, torch.Tensor | None]]


def evaluate(pool: Pool, folder: Path, source: str = "net") -> Found:
    """Returns all outcomes, with the adversarial samples of one attack."""
    store = OutcomeStore(folder / "ledger", {})
    steps = run_schedule(SCHEDULE, store, pool, source, keep=lambda step: step.attack == "pgd-3")
    return {
        step: (outcome, store.load_x_adv(step) if step.attack == "pgd-3" else None)
        for step, outcome, _ in steps
    }


def in_this_process(work: WorkerJob, folder: Path) -> Found:
    """Evaluates in this process with one thread, as a worker does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return evaluate(LocalPool(Attackers(work)), folder)
    finally:
        torch.set_num_threads(threads)


def expect_equal(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    for step, (outcome, kept) in expected.items():
        other, other_kept = found[step]
        for name in ("samples", "labels", "predictions", "broken", "usable", "linf", "l2"):
            assert torch.equal(getattr(outcome, name), getattr(other, name)), (step, name)
        if step.attack == "pgd-3":
            for tensor, same in zip(kept, other_kept, strict=True):
                assert torch.equal(tensor, same), step


def waiting(folder: Path, num: int = 1) -> list[int]:
    """Waits until `num` processes wait for a folder's file; returns their IDs."""
    deadline = time.monotonic() + 100
    while len(found := sorted(folder.glob("*.pid"))) < num:
        assert time.monotonic() < deadline, "no worker started"
        time.sleep(0.02)
    return [int(path.stem) for path in found]


def gone_after(seconds: float, *pids: int) -> None:
    deadline = time.monotonic() + seconds
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Returns whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
