"""DDP hook that averages gradients in an order that survives a resume, bit for bit.

DDP rebuilds its buckets after the first step; from three ranks on, gloo's order of summation
depends on them, so that a run resumed at step 100 would differ in the last bit.
"""

# No `from __future__ import annotations` here: DDP compares a hook's annotations with classes.

import torch
import torch.distributed as dist


def average_each(world_size: int, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Averages a bucket's gradients one by one, as a communication hook of DDP.

    Args:
        world_size: of the process group.
        bucket: its gradients are views of one buffer.

    Returns:
        A future of the buffer.
    """
    sums = [dist.all_reduce(grad, async_op=True).get_future() for grad in bucket.gradients()]

    def divide(_: torch.futures.Future[list]) -> torch.Tensor:
        return bucket.buffer().div_(world_size)

    return torch.futures.collect_all(sums).then(divide)
