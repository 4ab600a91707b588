"""Operations on which a step spends its time, by torch.profiler."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from raymi.benchmarks.arms import JOINT, STAGED, step_call
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section, number

_ROWS = 12
_STEPS = 2


def measure_profile(plan: Plan) -> Section:
    """Profiles steps of NAMID in the configured schedule; includes the profiler's own cost."""
    arm = STAGED if plan.config.mi.schedule == "staged" else JOINT
    step = step_call(plan.config, arm, plan.device)
    step()
    cuda = plan.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(_STEPS):
            step()
        if cuda:
            torch.cuda.synchronize(plan.device)
    attribute = "self_device_time_total" if cuda else "self_cpu_time_total"
    spent = {event: getattr(event, attribute) for event in profiler.key_averages()}
    total = sum(spent.values())
    images = _STEPS * plan.config.optim.batch_size
    largest = sorted(spent, key=lambda event: spent[event], reverse=True)[:_ROWS]
    rows = [
        [
            event.key[:60],
            number(spent[event] / 1000 / images),
            f"{spent[event] / total:.0%}",
            number(event.count / _STEPS),
        ]
        for event in largest
    ]
    return Section(
        f"Operations of a step ({arm} NAMID), by time on {'the GPU' if cuda else 'a thread'}",
        ("operation", "ms per sample", "share", "calls per step"),
        rows,
        {"microseconds": {event.key: spent[event] for event in largest}, "total": total},
    )
