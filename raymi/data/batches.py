"""Which samples are in which batch, and which of them a worker computes.

The order is a function of (seed, epoch), a batch of (order, step), and a worker's part of it of
(batch, rank, world size): nothing has to be remembered, and no sample is repeated or dropped.
Where generated images are mixed in, training and generated images each come from an endless row of
permutations, in which an epoch has a place that can be computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raymi.counter_rng import permutation, random_key


def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the training set.

    Returns: (num_samples,) int64, a permutation of 0 .. num_samples-1, on the CPU.
    """
    return permutation(random_key(seed, "order", epoch), num_samples)


def mixed_order(
    num_samples: int, num_generated: int, fraction: float, batch_size: int, seed: int, epoch: int
) -> Tensor:
    """The order of an epoch in which each batch of b has round(fraction * b) generated images.

    Training images are numbered 0 .. num_samples-1, generated ones num_samples, num_samples+1, ...
    Of either kind, every image is visited equally often up to one, over any number of epochs; with
    fraction 0 this is `epoch_order`.

    Args: num_generated, at least 1; fraction, in [0, 1); epoch, the number of those before it.
    Returns: (num_samples,) int64, on the CPU; cut it with `global_batch`.
    """
    generated = generated_slots(num_samples, batch_size, fraction)
    count = int(generated.sum())  # the same in every epoch
    rest = num_samples - count
    order = torch.empty(num_samples, dtype=torch.int64)
    order[~generated] = _endless_order(num_samples, seed, "order", epoch * rest, rest)
    order[generated] = num_samples + _endless_order(
        num_generated, seed, "generated", epoch * count, count
    )
    return order


def generated_slots(num_samples: int, batch_size: int, fraction: float) -> Tensor:
    """Where in an epoch the generated images go: round(fraction * b) of each batch of b.

    Rounded to the nearest integer and halves to the even one, so a very small batch may have
    images of one kind only. They are spread evenly: among any n neighbours in a batch there are as
    many as the batch's share of n, to less than one, so every worker has the same mixture.

    Returns: (num_samples,) bool.
    """
    position = torch.arange(num_samples)
    within = position % batch_size
    size = (num_samples - (position - within)).clamp(max=batch_size)
    count = (fraction * size.double()).round().long()
    return (within + 1) * count // size > within * count // size


def _endless_order(num_samples: int, seed: int, kind: str, first: int, count: int) -> Tensor:
    """Places `first` .. `first + count - 1` in the endless row of permutations: (count,) int64."""
    passes = range(first // num_samples, -(-(first + count) // num_samples))
    orders = [permutation(random_key(seed, kind, number), num_samples) for number in passes]
    return torch.cat([torch.arange(0), *orders])[first % num_samples :][:count]


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
