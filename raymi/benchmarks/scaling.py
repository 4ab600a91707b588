"""One worker against N that share the same global batch, under plain torch.distributed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from raymi.benchmarks.arms import with_settings
from raymi.benchmarks.clock import ratio
from raymi.benchmarks.plan import Plan, places
from raymi.benchmarks.processes import in_processes
from raymi.benchmarks.section import Section, number, skipped

WARM_UP = 2  # steps
_TITLE = "Scaling: images per second over workers, one thread each, the same global batch"


def measure_scaling(plan: Plan) -> Section:
    """Times a loop on 1 and on N workers in turn, in fresh processes for each run; and on N
    processes that share the batch but do not communicate, which is all that the machine has."""
    if why := no_scaling(plan):
        return skipped(_TITLE, why)
    alone, several, apart = "1 worker", f"{plan.workers} workers", f"{plan.workers} workers apart"
    seconds: dict[str, list[float]] = {alone: [], several: [], apart: []}
    for _ in range(plan.runs):
        seconds[alone].append(plain_run(plan, 1))
        seconds[several].append(plain_run(plan, plan.workers))
        seconds[apart].append(plain_run(plan, plan.workers, apart=True))
    faster = {name: ratio(seconds[alone], each) for name, each in seconds.items()}
    share = ratio(seconds[apart], seconds[several])
    return Section(
        _TITLE,
        ("processes", "images / s", "times as fast"),
        [
            [name, pace(plan, each), "" if name == alone else str(faster[name])]
            for name, each in seconds.items()
        ],
        {
            "seconds": seconds,
            "images": plan.loop_steps * plan.config.optim.batch_size,
            "times_as_fast": {name: vars(value) for name, value in faster.items()},
            "share_of_apart": vars(share),
        },
        (
            f"medians of {plan.runs} runs in turn of {plan.loop_steps} steps; start-up not counted",
            f"{apart}: each trains on its share of the batch alone, without communication: what "
            f"{plan.workers} processes at once can do on this machine. {several} reach {share} "
            "times their pace.",
        ),
    )


def no_scaling(plan: Plan) -> str | None:
    """Why N workers cannot be measured here; None where they can."""
    there = places(plan.device)
    kind = "GPUs" if plan.device.type == "cuda" else "cores"
    if plan.workers < 2 <= there:
        return "one worker has nothing to be compared with: give workers=2 or more"
    if plan.workers < 2:
        remedy = " (use_gpu=false measures CPU workers)" if kind == "GPUs" else ""
        return f"it needs at least 2 {kind}, this machine has {there}{remedy}"
    if plan.workers > there:
        return f"{plan.workers} workers need as many {kind}, there are {there}"
    if plan.config.optim.batch_size < plan.workers:
        return f"a batch of {plan.config.optim.batch_size} is too small for {plan.workers} workers"
    return None


def plain_run(plan: Plan, num: int, niceness: int = 0, *, apart: bool = False) -> float:
    """Seconds of the measured loop on `num` fresh processes.

    Args: apart, each process trains by itself on its share of the batch.
    """
    batch = plan.config.optim.batch_size // (num if apart else 1)
    config = with_settings(
        plan.config, {"scaling.workers": 1 if apart else num, "optim.batch_size": max(2, batch)}
    )
    job: dict[str, Any] = {
        "kind": "loop",
        "config": config.model_dump_json(),
        "device": plan.device.type,
        "warm_up": WARM_UP,
        "steps": plan.loop_steps,
        "niceness": niceness,
        "apart": apart,
    }
    return max(result["seconds"] for result in in_processes(job, num))


def pace(plan: Plan, seconds: Sequence[float]) -> str:
    """Images per second: the median of the runs, and the lowest and highest."""
    images = plan.loop_steps * plan.config.optim.batch_size
    low, high = images / max(seconds), images / min(seconds)
    return f"{number(images / median(seconds))} ({number(low)} to {number(high)})"
