"""Peak memory of training steps, each measured in a fresh process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

from raymi.benchmarks.arms import (
    AT,
    arms_of,
    step_call,
    with_settings,
)
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.processes import in_processes
from raymi.benchmarks.section import Section
from raymi.config import Config
from raymi.errors import first_line

GIB = 2**30
_STEPS = 2  # the first one makes the optimisers' state


def measure_memory(plan: Plan) -> Section:
    """Peak memory of a step of each arm at the configured batch."""
    arms = arms_of(plan.config)
    batch = plan.config.optim.batch_size
    found = {arm: peak_in_process(plan, arm, batch) for arm in arms}
    own = {arm: one["peak"] - one["before"] for arm, one in found.items() if one["fits"]}
    rows = []
    for arm, one in found.items():
        if arm not in own:
            rows.append([arm, one["why"], "", ""])
            continue
        relative = f"{own[arm] / own[AT]:.2f}" if AT in own else ""
        rows.append([arm, f"{one['peak'] / GIB:.2f}", f"{own[arm] / GIB:.2f}", relative])
    return Section(
        f"Peak memory of a step at B = {batch}, GiB",
        ("step", "peak", "without what torch itself takes", f"/ {AT}"),
        rows,
        {"bytes": found, "batch": batch},
        (what_is_measured(plan.device),),
    )


def what_is_measured(device: torch.device) -> str:
    """Which memory `peak_of_steps` is about, in words."""
    if device.type == "cuda":
        return "the largest sum of allocated tensors on the GPU (torch.cuda.max_memory_allocated)"
    return "the largest resident memory of a fresh process, minus that before the model was built"


def peak_in_process(plan: Plan, arm: str, batch: int, limit: float | None = None) -> dict[str, Any]:
    """`peak_of_steps` of an arm in a fresh process; limit, GiB of the GPU that it may take."""
    settings = {
        "optim.batch_size": batch,
        "attack.steps": min(1, plan.config.attack.steps),  # more take longer, not more memory
        "scaling.workers": 1,
    }
    config = with_settings(plan.config, settings)
    job = {
        "kind": "memory",
        "arm": arm,
        "config": config.model_dump_json(),
        "device": plan.device.type,
        "limit": limit,
    }
    return in_processes(job, threads=plan.threads)[0]


def peak_of_steps(
    config: Config, arm: str, device: torch.device, limit: float | None = None
) -> dict[str, Any]:
    """Peak memory of this process over its first steps.

    Args: config, what all arms share; arm; device; limit, GiB of the GPU's memory at most.
    Returns: `peak` and what was in use `before`, in bytes; `fits`, False where the
        GPU refused, `why` in its words (then the peak says nothing).
    """
    cuda = device.type == "cuda"
    if cuda and limit is not None:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit * GIB / whole), device)
    before = 0 if cuda else peak_resident()
    try:
        step = step_call(config, arm, device)
        for _ in range(_STEPS):
            step()
    except RuntimeError as error:  # torch's own, or a library's that got no memory to work in
        if not cuda:
            raise
        why = f"{type(error).__name__}: {first_line(error)}"
        return {"fits": False, "peak": 0, "before": before, "why": why}
    peak = torch.cuda.max_memory_allocated(device) if cuda else peak_resident()
    return {"fits": True, "peak": peak, "before": before}


def peak_resident() -> int:
    """The largest resident memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss begins with what the parent had
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
