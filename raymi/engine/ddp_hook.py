"""DDP hook that averages gradients in an order that survives a resume, bit for bit.

DDP changes the order of its buckets after the first step; from three ranks on, gloo's order of
summation depends on them, so that a run resumed at step 100 would differ in the last bit.
"""

# No `from __future__ import annotations` here: DDP compares a hook's annotations with classes.

import torch
import torch.distributed as dist

ONE_BUCKET_MB = 1 << 30
"""Size of DDP's buckets, in MiB, with which one holds all gradients of a type."""


def average_in_order(
    places: dict[torch.Tensor, int], bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Averages the gradients of a bucket in a fixed layout, as a communication hook of DDP.

    Args:
        places: of the parameters in that layout.
        bucket: its gradients are views of one buffer.

    Returns:
        A future of the buffer.
    """
    pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
    grads = [grad for _, grad in sorted(pairs, key=lambda pair: places[pair[0]])]
    flat = torch.cat([grad.flatten() for grad in grads])

    def take(_: torch.futures.Future[list]) -> torch.Tensor:
        parts = flat.div_(dist.get_world_size()).split([grad.numel() for grad in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))
        return bucket.buffer()

    return dist.all_reduce(flat, async_op=True).get_future().then(take)
