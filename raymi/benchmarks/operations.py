"""How many multiply-adds a step has outside of PGD: counted, not timed."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from raymi.benchmarks.arms import (
    NAIVE,
    RELEASED,
    arms_of,
    naive_problem,
    step_call,
    with_settings,
)
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section
from raymi.config import Config

_BATCH = 2


def measure_operations(plan: Plan) -> Section:
    """Counts the arms' multiply-adds."""
    problem = naive_problem(plan.config)
    arms = arms_of(plan.config)
    counts = {arm: multiply_adds(plan.config, arm, plan.device) for arm in arms}
    needed = counts[RELEASED]
    rows = [[arm, f"{n / 1e9:.3f}", f"{n / needed:.2f}"] for arm, n in counts.items()]
    return Section(
        f"Multiply-adds per sample outside of crafting, at B = {_BATCH}",
        ("step", "G", f"/ {RELEASED}"),
        rows,
        {"multiply_adds": counts},
        (f"{NAIVE}: {problem}",) if problem else (),
    )


def multiply_adds(config: Config, arm: str, device: torch.device) -> float:
    """Multiply-adds per sample, of convolutions and matrix products, of an arm's step for which
    x_adv is given."""
    alone = {"optim.batch_size": _BATCH, "scaling.workers": 1, "scaling.compile": False}
    config = with_settings(config, alone)
    step = step_call(config, arm, device, crafting=False)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 2 / _BATCH
