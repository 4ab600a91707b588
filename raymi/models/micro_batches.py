"""Micro-batches: passes of a network over pieces of a shard that exceeds a worker's memory.

The first pass keeps the outputs alone; the loss is of the whole global batch; the backward
pass repeats the forward piece by piece. Only memory and time change, except for BatchNorm: its
statistics in train mode are a piece's (of all workers), and its running statistics follow
one piece after the other.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from raymi.collectives import Shard
from raymi.models.modes import Repetition


def num_pieces(largest: int, micro_batch: int | None) -> int:
    """Computes the number of pieces of a shard, the same on all workers.

    Args:
        largest: samples of the largest shard of a global batch.
        micro_batch: maximum of samples in a piece; None: no limit.
    """
    return 1 if micro_batch is None else max(1, -(-largest // micro_batch))


def pieces_of(micro_batch: int | None, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Splits tensors (b, ...) into pieces of at most `micro_batch` rows; None: one piece."""
    num = num_pieces(len(tensors[0]), micro_batch)
    return zip(*(tensor.tensor_split(num) for tensor in tensors), strict=True)


def in_pieces(
    forward: Callable[[Tensor], Tensor],
    module: nn.Module,
    x: Tensor,
    shard: Shard,
    micro_batch: int | None,
) -> Tensor:
    """Computes `forward(x)` in pieces of nearly the same size.

    Args:
        forward: calls `module` on (b, ...) and returns (b, ...).
        module: the network.
        x: (b, ...), the worker's shard.
        shard: of x; all workers have as many pieces, some may be empty.
        micro_batch: maximum of samples in a piece; None: no limit.

    Returns:
        (b, ...).
    """
    num = num_pieces(max(shard.sizes), micro_batch)
    if num == 1:
        return forward(x)
    if not torch.is_grad_enabled():
        return torch.cat([forward(piece) for piece in x.tensor_split(num)])

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), Repetition(module)

    with set_checkpoint_early_stop(False):  # every worker joins all of BatchNorm's sums
        return torch.cat(
            [
                checkpoint(forward, piece, use_reentrant=False, context_fn=contexts)
                for piece in x.tensor_split(num)
            ]
        )
