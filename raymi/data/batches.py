"""Order of the samples, global batches, and the workers' shares of them.

The order is a function of (seed, epoch), a batch of (order, step), and a worker's share of (batch,
rank, world size): without state, and no sample is repeated or dropped. With generated images,
training and generated images each come from an endless sequence of permutations, in which the
position of an epoch is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raymi.collectives import Collectives, Shard
from raymi.counter_rng import permutation, random_key


def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """Returns the order in which an epoch visits the training set.

    Returns:
        (num_samples,) int64, a permutation of 0 .. num_samples-1, on the CPU.
    """
    return permutation(random_key(seed, "order", epoch), num_samples)


def mixed_order(
    num_samples: int, num_generated: int, fraction: float, batch_size: int, seed: int, epoch: int
) -> Tensor:
    """Returns an epoch's order in which each batch of b has round(fraction * b) generated images.

    Training images are numbered 0 .. num_samples-1, generated ones num_samples, num_samples+1, ...
    Over any number of epochs, visits of images of one kind differ by at most one. With fraction 0
    this is `epoch_order`.

    Args:
        num_samples: number of training images.
        num_generated: number of generated images, at least 1.
        fraction: share of generated images in a batch, in [0, 1).
        batch_size: images in a global batch.
        seed: seed of the permutations.
        epoch: number of earlier epochs.

    Returns:
        (num_samples,) int64, on the CPU; cut it with `global_batch`.
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
    """Returns the positions of generated images in an epoch: round(fraction * b) per batch of b.

    Halves are rounded to even, so a very small batch may have images of one kind only. Positions
    are spread evenly: their number among any n neighbours in a batch differs from the batch's share
    by less than one, so all workers have the same mixture.

    Returns:
        (num_samples,) bool.
    """
    position = torch.arange(num_samples)
    within = position % batch_size
    size = (num_samples - (position - within)).clamp(max=batch_size)
    count = (fraction * size.double()).round().long()
    return (within + 1) * count // size > within * count // size


def _endless_order(num_samples: int, seed: int, kind: str, first: int, count: int) -> Tensor:
    """Returns entries `first` .. `first + count - 1` of the endless sequence: (count,) int64."""
    passes = range(first // num_samples, -(-(first + count) // num_samples))
    orders = [permutation(random_key(seed, kind, number), num_samples) for number in passes]
    return torch.cat([torch.arange(0), *orders])[first % num_samples :][:count]


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Returns the number of global batches in an epoch; the last may be smaller."""
    return -(-num_samples // batch_size)


def global_batch(order: Tensor, batch_size: int, step: int) -> Tensor:
    """Returns the samples of step 0, 1, ... of an epoch, over all workers.

    Args:
        order: (N,) from `epoch_order`.
        batch_size: images in a global batch.
        step: below `steps_per_epoch(N, batch_size)`.

    Returns:
        (batch_size,) int64, a view of `order`; fewer in the last step.
    """
    assert 0 <= step < steps_per_epoch(len(order), batch_size)
    return order[step * batch_size : (step + 1) * batch_size]


def share(batch_indices: Tensor, rank: int, world_size: int) -> Tensor:
    """Returns the contiguous part of a global batch that worker `rank` of `world_size` computes.

    Args:
        batch_indices: (B,) samples of the global batch.
        rank: number of the worker, from 0.
        world_size: number of workers.

    Returns:
        (share_sizes(B, world_size)[rank],), a view; it may be empty.
    """
    sizes = share_sizes(len(batch_indices), world_size)
    start = sum(sizes[:rank])
    return batch_indices[start : start + sizes[rank]]


def shard_of(batch_indices: Tensor, group: Collectives, key: int = 0) -> Shard:
    """Returns a worker's shard of a global batch.

    Args:
        batch_indices: (B,) samples of the global batch.
        group: the workers.
        key: of the batch's random numbers.
    """
    index = share(batch_indices, group.rank, group.world_size)
    return Shard(tuple(share_sizes(len(batch_indices), group.world_size)), group, index, key)


def share_sizes(batch_size: int, world_size: int) -> list[int]:
    """Returns the numbers of samples of the workers, which differ by at most one, larger first.

    Returns:
        `world_size` integers whose sum is `batch_size`.
    """
    size, larger = divmod(batch_size, world_size)
    return [size + (rank < larger) for rank in range(world_size)]
