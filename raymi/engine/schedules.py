"""Learning rate schedules of torch, stepped once per optimiser step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from raymi.config import OptimConfig


def build_schedule(optimizer: Optimizer, optim: OptimConfig, total_steps: int) -> LRScheduler:
    """Builds the schedule `optim.schedule` over `total_steps` optimiser steps.

    During a warm-up of w steps, step t = 0, 1, ... has (t + 1) / (w + 1) of the peak rate.
    """
    if optim.schedule == "onecycle":
        return _onecycle(optimizer, optim, total_steps)
    warmup = round(optim.warmup_share * total_steps)
    if warmup == 0:
        return _after_warmup(optimizer, optim, total_steps, 0)
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    rest = _after_warmup(optimizer, optim, total_steps, warmup)
    with _without_order_warning():
        return SequentialLR(optimizer, [rise, rest], milestones=[warmup])


def _after_warmup(
    optimizer: Optimizer, optim: OptimConfig, total_steps: int, warmup: int
) -> LRScheduler:
    if optim.schedule == "multistep":
        milestones = [round(share * total_steps) - warmup for share in optim.milestones]
        return MultiStepLR(optimizer, milestones, gamma=0.1)
    if optim.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=max(total_steps - warmup, 1))
    return ConstantLR(optimizer, factor=1.0)


def _onecycle(optimizer: Optimizer, optim: OptimConfig, total_steps: int) -> LRScheduler:
    total = total_steps + 1  # the schedule is stepped once more, after the last update
    shortest = 1.5 / total  # torch divides by the length of the rise
    return OneCycleLR(
        optimizer,
        max_lr=optim.lr,
        total_steps=total,
        pct_start=max(optim.warmup_share, shortest) if optim.warmup_share > 0 else 0.0,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=10.0,
    )


def fast_forward(schedule: LRScheduler, steps: int) -> None:
    """Advances a new schedule by a number of optimiser steps, bit for bit."""
    with _without_order_warning():
        for _ in range(steps):
            schedule.step()


@contextmanager
def _without_order_warning() -> Iterator[None]:
    """Silences torch's warning that the optimiser made no step before the schedule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
