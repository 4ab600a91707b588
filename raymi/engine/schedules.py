"""Learning rate schedules of torch, stepped once per optimiser step."""

from __future__ import annotations

import warnings

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
)

from raymi.config import OptimConfig


def build_schedule(optimizer: Optimizer, optim: OptimConfig, total_steps: int) -> LRScheduler:
    """Builds the schedule `optim.schedule` over `total_steps` optimiser steps."""
    if optim.schedule == "multistep":
        milestones = [round(share * total_steps) for share in optim.milestones]
        return MultiStepLR(optimizer, milestones, gamma=0.1)
    if optim.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=total_steps)
    if optim.schedule == "onecycle":
        total = total_steps + 1  # the schedule is stepped once more, after the last update
        shortest = 1.5 / total  # torch divides by the length of the rise
        return OneCycleLR(
            optimizer,
            max_lr=optim.lr,
            total_steps=total,
            pct_start=max(optim.warmup, shortest) if optim.warmup > 0 else 0.0,
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=10.0,
        )
    return ConstantLR(optimizer, factor=1.0)


def fast_forward(schedule: LRScheduler, steps: int) -> None:
    """Advances a new schedule by a number of optimiser steps, bit for bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that the optimiser made no step
        for _ in range(steps):
            schedule.step()
