"""Shards of global batches of known sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raymi.collectives import Collectives, ProcessGroup, Shard


def shard_of_rank(sizes: Sequence[int]) -> Shard:
    """This rank's shard of a batch; of one process where no group was joined."""
    group = ProcessGroup() if torch.distributed.is_initialized() else Collectives()
    return Shard(tuple(sizes), group, _index(sizes, group.rank))


def shards_without_processes(sizes: Sequence[int]) -> list[Shard]:
    """The shards of all workers, for what needs their number alone, not each other."""
    shards = []
    for rank in range(len(sizes)):
        group = Collectives()
        group.rank, group.world_size = rank, len(sizes)
        shards.append(Shard(tuple(sizes), group, _index(sizes, rank)))
    return shards


def _index(sizes: Sequence[int], rank: int) -> torch.Tensor:
    return torch.arange(sum(sizes))[sum(sizes[:rank]) : sum(sizes[: rank + 1])]
