"""The few operations across workers that the method needs, differentiable and exact.

Convention: each rank computes a loss such that the *mean over ranks* is the loss of the global
batch (DDP averages gradients). So a per-sample loss is `world_size * local_sum / global_batch`, and
a loss that every rank computes whole (a cosine over the batch, say) is that loss. The backward
passes below make the gradients of both kinds exact.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Collectives:
    """One process: every operation is the identity. The base of `ProcessGroup`."""

    rank: int = 0
    world_size: int = 1

    def gather(self, x: Tensor, sizes: list[int]) -> Tensor:
        """The rows of all ranks in rank order, of which rank r holds sizes[r].

        x (sizes[rank], ...) to (sum(sizes), ...); the gradient flows back to every rank's x.
        """
        return x

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks, elementwise; the gradient flows back to every rank's x."""
        return x

    def max(self, x: Tensor) -> Tensor:
        """Maximum over ranks, elementwise, without gradient."""
        return x.detach()


class ProcessGroup(Collectives):
    """The operations over a torch.distributed group (gloo or nccl).

    Ranks may hold different numbers of rows, also none; all ranks call in the same order.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)

    def gather(self, x: Tensor, sizes: list[int]) -> Tensor:
        return _Gather.apply(x, sizes, self)

    def sum(self, x: Tensor) -> Tensor:
        return _Sum.apply(x, self)

    def max(self, x: Tensor) -> Tensor:
        x = x.detach().clone()
        dist.all_reduce(x, dist.ReduceOp.MAX, group=self.group)
        return x


class _Gather(torch.autograd.Function):
    """Rows of all ranks, padded to equal shares on the wire; backward sums what ranks ask of a
    row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group.group)
        start = sum(ctx.sizes[: ctx.group.rank])
        return grad[start : start + ctx.sizes[ctx.group.rank]], None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        x = x.contiguous().clone()
        dist.all_reduce(x, group=group.group)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.group.group)
        return grad, None
