"""Throughput of N workers against one, with the same global batch, in plain torch.distributed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch
import torch.distributed as dist

from raymi.benchmarks.arms import trainee, with_settings
from raymi.benchmarks.clock import now, ratio
from raymi.benchmarks.plan import Plan, free_slots
from raymi.benchmarks.processes import run_processes
from raymi.benchmarks.section import Section, number, skipped
from raymi.collectives import Collectives
from raymi.config import Config

_WARM_UP = 2  # steps
_TITLE = "Scaling: images per second over workers, one thread each, the same global batch"


def measure_scaling(plan: Plan) -> Section:
    """Times a loop on 1 worker, on N, and on N that do not communicate, in turn.

    Workers that do not communicate show the most that the machine can do. Each run has fresh
    processes.
    """
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
            f"{apart}: each trains on its share of the batch alone, without communication, the "
            f"most that this machine can do. {several} reach {share} times their pace.",
        ),
    )


def no_scaling(plan: Plan) -> str | None:
    """Returns why N workers cannot be measured here; None: they can."""
    available = free_slots(plan.device)
    kind = "GPUs" if plan.device.type == "cuda" else "cores"
    if plan.workers < 2 <= available:
        return "nothing to compare one worker with: set workers=2 or more"
    if plan.workers < 2:
        remedy = " (use_gpu=false measures CPU workers)" if kind == "GPUs" else ""
        return f"at least 2 {kind} are needed, this machine has {available}{remedy}"
    if plan.workers > available:
        return f"{plan.workers} workers need as many {kind}, this machine has {available}"
    if plan.config.optim.batch_size < plan.workers:
        return f"a batch of {plan.config.optim.batch_size} is too small for {plan.workers} workers"
    return None


def plain_run(plan: Plan, num: int, *, apart: bool = False) -> float:
    """Measures the loop on `num` fresh processes.

    Args:
        plan: what is measured.
        num: number of processes.
        apart: whether each process trains alone, on its share of the batch.

    Returns:
        Seconds of the slowest process.
    """
    batch = plan.config.optim.batch_size // (num if apart else 1)
    config = with_settings(
        plan.config, {"scaling.workers": 1 if apart else num, "optim.batch_size": max(2, batch)}
    )
    arguments = [(config, plan.loop_steps)] * num
    return max(run_processes(timed_loop, arguments, plan.device.type, connected=not apart))


def timed_loop(group: Collectives, device: torch.device, config: Config, steps: int) -> float:
    """Trains on random images, loaded as in a run, and times the steps after a warm-up.

    Args:
        group: processes that share the batch.
        device: where it trains.
        config: configuration of the run.
        steps: measured steps.

    Returns:
        Seconds of all measured steps, from barrier to barrier.
    """
    made = trainee(config, device, group)

    def train(num: int) -> float:
        for _ in range(num):
            made.state.step(next(made.batches))
        if group.world_size > 1:
            now()  # the GPU has finished
            dist.barrier()
        return now()

    began = train(_WARM_UP)
    return train(steps) - began


def pace(plan: Plan, seconds: Sequence[float]) -> str:
    """Returns images per second as text: the median of the runs, the lowest and highest."""
    images = plan.loop_steps * plan.config.optim.batch_size
    low, high = images / max(seconds), images / min(seconds)
    return f"{number(images / median(seconds))} ({number(low)} to {number(high)})"
