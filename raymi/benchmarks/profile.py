"""Which operations the time of a step is spent on, as torch's profiler sees it."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity

from raymi.benchmarks.arms import JOINT, STAGED, step_call
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section, number

_ROWS = 12
_STEPS = 2


def measure_profile(plan: Plan) -> Section:
    """Profiles a step of NAMID, in the configured schedule; the profiler itself takes time, too."""
    arm = STAGED if plan.config.mi.schedule == "staged" else JOINT
    step = step_call(plan.config, arm, plan.device)
    step()
    cuda = plan.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities, record_shapes=False) as profiler:
        for _ in range(_STEPS):
            step()
        if cuda:
            torch.cuda.synchronize(plan.device)
    spent: dict[str, tuple[float, int]] = {}
    for event in profiler.key_averages():
        own = _own_microseconds(event, cuda=cuda)
        if own > 0:
            spent[event.key] = (own, event.count)
    total = sum(own for own, _ in spent.values())
    images = _STEPS * plan.config.optim.batch_size
    largest = sorted(spent, key=lambda name: spent[name][0], reverse=True)[:_ROWS]
    rows = [
        [
            name[:60],
            number(spent[name][0] / 1000 / images),
            f"{spent[name][0] / total:.0%}",
            number(spent[name][1] / _STEPS),
        ]
        for name in largest
    ]
    return Section(
        f"Operations of a step ({arm} NAMID): where {'the GPU' if cuda else 'a thread'} is busy",
        ("operation", "ms per sample", "share", "calls per step"),
        rows,
        {"microseconds": {name: spent[name][0] for name in largest}, "total": total},
    )


def _own_microseconds(event: Any, *, cuda: bool) -> float:
    """Time in the operation itself, not in those that it calls."""
    return event.self_device_time_total if cuda else event.self_cpu_time_total
