"""Peak memory of training steps, each measured in a fresh process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

from raymi.benchmarks.arms import ARMS, AT, step_call, with_settings
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.processes import run_processes
from raymi.benchmarks.section import Section
from raymi.collectives import Collectives
from raymi.config import Config
from raymi.errors import first_line

GIB = 2**30
_STEPS = 2  # the first one allocates the optimizers' state
_MEANING = {
    "cuda": "largest sum of allocated tensors on the GPU (torch.cuda.max_memory_allocated)",
    "cpu": "largest resident memory of a fresh process, minus that before the model was built",
}


def measure_memory(plan: Plan) -> Section:
    """Measures the peak memory of a step of each arm at the configured batch."""
    batch = plan.config.optim.batch_size
    results = {arm: peak_in_process(plan, arm) for arm in ARMS}
    own = {arm: one["peak"] - one["before"] for arm, one in results.items() if one["fits"]}
    rows = []
    for arm, one in results.items():
        if arm not in own:
            rows.append([arm, one["why"], "", ""])
            continue
        relative = f"{own[arm] / own[AT]:.2f}" if AT in own else ""
        rows.append([arm, f"{one['peak'] / GIB:.2f}", f"{own[arm] / GIB:.2f}", relative])
    return Section(
        f"Peak memory of a step at B = {batch}, GiB",
        ("step", "peak", "without torch itself", f"/ {AT}"),
        rows,
        {"bytes": results, "batch": batch},
        (_MEANING[plan.device.type],),
    )


def peak_in_process(plan: Plan, arm: str) -> dict[str, Any]:
    """Returns `peak_of_steps` of an arm, measured in a fresh process."""
    settings = {
        "attack.steps": min(1, plan.config.attack.steps),  # more take longer, not more memory
        "scaling.workers": 1,
    }
    config = with_settings(plan.config, settings)
    (result,) = run_processes(peak_of_steps, [(config, arm)], plan.device.type, plan.threads)
    return result


def peak_of_steps(_: Collectives, device: torch.device, config: Config, arm: str) -> dict[str, Any]:
    """Measures the peak memory of this process over its first steps.

    Args:
        device: where it trains.
        config: configuration that all arms share.
        arm: the arm.

    Returns:
        `peak` and `before`, the memory in use before the model was built, in bytes; `fits`: False
        if the GPU had too little memory, with its message as `why`.
    """
    cuda = device.type == "cuda"
    before = 0 if cuda else peak_resident()
    try:
        step = step_call(config, arm, device)
        for _step in range(_STEPS):
            step()
    except RuntimeError as error:  # torch's own, or of a library without memory for its workspace
        if not cuda:
            raise
        why = f"{type(error).__name__}: {first_line(error)}"
        return {"fits": False, "peak": 0, "before": before, "why": why}
    peak = torch.cuda.max_memory_allocated(device) if cuda else peak_resident()
    return {"fits": True, "peak": peak, "before": before}


def peak_resident() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss starts with the value of the parent
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
