"""A long run needs no more memory, files and threads at its end than when it was warm."""

from __future__ import annotations

import gc

import psutil
import pytest
from gloo import run_ranks
from tiny_runs import tiny_config

from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.runs.run_folder import RunFolder

LONG = {
    "data.limit": 50, "model.width": 0.25, "mi.hidden": 4, "mi.base_width": 2,
    "attack.steps": 1, "validation.steps": 1, "validation.every": 10, "evaluation.steps": 1,
    "optim.batch_size": 23, "optim.ema": 0.9,
    "checkpoint.every": 10, "checkpoint.every_steps": 5,
}  # fmt: skip
"""45 images in steps of 23 and 22 of the joint NAMID, a validation every tenth epoch, a checkpoint
after each fifth step, and a line in the journal for each step."""

ALLOWED = 8 * 2**20
"""Bytes by which the allocator may let the resident memory grow: 6 kB a step in the long run and 50
kB in the short one."""


class Watching(LocalContext):
    """Measures this process at each twentieth epoch."""

    def __init__(self):
        super().__init__("cpu")
        self.process, self.epochs, self.measured = psutil.Process(), 0, []

    def report(self, metrics):
        self.epochs += 1
        if self.epochs % 20:
            return
        gc.collect()
        with self.process.oneshot():
            memory, threads = self.process.memory_info().rss, self.process.num_threads()
        self.measured.append((memory, self.process.num_fds(), threads))


def long_run(rank, world_size, folder, epochs):
    context, config = Watching(), tiny_config({**LONG, "optim.epochs": epochs})
    assert train(config, context, RunFolder(folder)).global_step == 2 * epochs
    return context.measured


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [60, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_many_steps_leave_nothing_behind(epochs, tmp_path):
    """Compared with the state after a third of the steps, when all is warm."""
    (measured,) = run_ranks(long_run, 1, tmp_path / "run", epochs, tmp_path=tmp_path)
    assert len(measured) == epochs // 20
    memory, files, threads = zip(*measured[len(measured) // 3 :], strict=True)
    assert memory[-1] - memory[0] <= ALLOWED
    assert files[-1] == files[0]
    assert threads[-1] == threads[0]
