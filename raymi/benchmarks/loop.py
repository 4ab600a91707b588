"""Training loop whose pace is measured over workers, the same under every launcher."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from raymi.benchmarks.arms import trainee
from raymi.benchmarks.clock import now
from raymi.collectives import Collectives
from raymi.config import Config


def timed_loop(
    config: Config, group: Collectives, device: torch.device, warm_up: int, steps: int
) -> dict[str, Any]:
    """Trains on random images, loaded as in a run, and times the steps after the warm-up.

    Args:
        config: configuration of the run.
        group: processes that share the batch.
        device: where it trains.
        warm_up: steps before the measurement.
        steps: measured steps.

    Returns:
        `seconds` of all measured steps, from barrier to barrier; `images` of all workers; `threads`
        of this worker.
    """
    made = trainee(config, device, group)

    def train(num: int) -> float:
        for _ in range(num):
            made.state.step(next(made.batches))
        ended = now()
        if group.world_size > 1:
            dist.barrier()
            ended = now()
        return ended

    began = train(warm_up)
    return {
        "seconds": train(steps) - began,
        "images": steps * config.optim.batch_size,
        "threads": torch.get_num_threads(),
    }
