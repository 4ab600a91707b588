"""The training loop whose pace is measured over workers, the same under every launcher."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from raymi.benchmarks.arms import trainee
from raymi.benchmarks.clock import Clock
from raymi.collectives import Collectives
from raymi.config import Config


def timed_loop(
    config: Config, group: Collectives, device: torch.device, warm_up: int, steps: int
) -> dict[str, Any]:
    """Trains on random images, with their feed, and times the steps after the warm-up.

    Returns: `seconds` of all measured steps together, from and to a barrier; `images`, those of
        all workers; `threads` of this worker.
    """
    made, clock = trainee(config, device, group), Clock(device)

    def train(num: int) -> None:
        for key in range(num):
            made.state.step(next(made.batches), key)
        clock.now()
        if group.world_size > 1:
            dist.barrier()

    train(warm_up)
    seconds = clock.time(lambda: train(steps))
    images = steps * config.optim.batch_size
    return {"seconds": seconds, "images": images, "threads": torch.get_num_threads()}
