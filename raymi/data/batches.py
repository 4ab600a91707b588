"""Which samples are in which batch, and which of them a worker computes.

The order is a function of (seed, epoch), a batch of (order, step), and a worker's part of it of
(batch, rank, world size): nothing has to be remembered, and no sample is repeated or dropped.
"""

from __future__ import annotations

from torch import Tensor

from raymi.counter_rng import permutation, random_key


def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the training set.

    Returns: (num_samples,) int64, a permutation of 0 .. num_samples-1, on the CPU.
    """
    return permutation(random_key(seed, "order", epoch), num_samples)


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """How many global batches of `batch_size` an epoch has; the last may be smaller."""
    return -(-num_samples // batch_size)


def global_batch(order: Tensor, batch_size: int, step: int) -> Tensor:
    """The samples of step 0, 1, ... of an epoch, over all workers.

    Args: order, (N,) from `epoch_order`; step, below `steps_per_epoch(N, batch_size)`.
    Returns: (batch_size,) int64, a view of `order`; fewer in the last step.
    """
    assert 0 <= step < steps_per_epoch(len(order), batch_size)
    return order[step * batch_size : (step + 1) * batch_size]


def share(batch_indices: Tensor, rank: int, world_size: int) -> Tensor:
    """The contiguous part of a global batch that worker `rank` of `world_size` computes.

    Args: batch_indices, (B,).
    Returns: (share_sizes(B, world_size)[rank],), a view; it may be empty.
    """
    sizes = share_sizes(len(batch_indices), world_size)
    start = sum(sizes[:rank])
    return batch_indices[start : start + sizes[rank]]


def share_sizes(batch_size: int, world_size: int) -> list[int]:
    """How many samples each worker gets: they differ by at most one, the larger come first.

    Returns: `world_size` integers that sum to `batch_size`.
    """
    size, larger = divmod(batch_size, world_size)
    return [size + (rank < larger) for rank in range(world_size)]
