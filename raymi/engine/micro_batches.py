"""A share of a batch that is too large for a worker's memory, sent through a network in pieces.

The first pass keeps the outputs alone; the loss is formed of the outputs of the whole global batch;
the backward pass goes through the network once more, piece by piece, from the gradient at the
outputs. Only memory and time change, but for BatchNorm: its statistics in train mode are those of
a piece (of all workers), and its running statistics follow one piece after the other.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from raymi.models.modes import Repetition


def num_pieces(sizes: list[int], micro_batch: int | None) -> int:
    """Pieces of each worker's share, the same number on all.

    Args: sizes, samples of each worker; micro_batch, most samples of a piece; None: no limit.
    """
    return 1 if micro_batch is None else max(1, -(-max(sizes) // micro_batch))


def pieces_of(micro_batch: int | None, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """This worker's rows of some tensors (b, ...), at most `micro_batch` at a time; None: all."""
    num = num_pieces([len(tensors[0])], micro_batch)
    return zip(*(tensor.tensor_split(num) for tensor in tensors), strict=True)


def in_pieces(
    forward: Callable[[Tensor], Tensor],
    module: nn.Module,
    x: Tensor,
    sizes: list[int],
    micro_batch: int | None,
) -> Tensor:
    """`forward(x)`, in pieces of nearly the same size; a single one is `forward(x)` itself.

    Args: forward, calls `module` on (b, ...) and returns (b, ...); x (b, ...), the worker's share;
        sizes, those of all workers: each has as many pieces, of which some may be empty;
        micro_batch, most samples of a piece; None: no limit.
    """
    num = num_pieces(sizes, micro_batch)
    if num == 1:
        return forward(x)
    if not torch.is_grad_enabled():
        return torch.cat([forward(piece) for piece in x.tensor_split(num)])

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), Repetition(module)

    with set_checkpoint_early_stop(False):  # every worker takes part in all of BatchNorm's sums
        return torch.cat(
            [
                checkpoint(forward, piece, use_reentrant=False, context_fn=contexts)
                for piece in x.tensor_split(num)
            ]
        )
