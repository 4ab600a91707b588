"""Gradients of three workers add up in the same order in every step."""

from __future__ import annotations

import torch
from gloo import run_ranks
from torch import nn

from raymi.collectives import ProcessGroup
from raymi.engine.learner import distributed


class Crossed(nn.Module):
    """Layers that are used in another order than they are registered in, so that DDP's buckets of
    the second step have another order than those of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(37, 37, bias=k != 1) for k in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k in (2, 0, 3, 1):
            x = self.layers[k](x).tanh()
        return x.square().mean()


def gradients_of_steps(rank: int, world_size: int, num_steps: int) -> list[list[torch.Tensor]]:
    """Gradients at unchanged weights on the same batch, step by step; the last: by hand."""
    torch.manual_seed(0)
    module, group = Crossed(), ProcessGroup()
    x = torch.randn(world_size, 5, 37)[rank]
    own = torch.autograd.grad(module(x), list(module.parameters()))
    task = distributed(module, group, torch.device("cpu"))
    steps = []
    for _ in range(num_steps):
        task.zero_grad(set_to_none=True)
        task(x).backward()
        steps.append([p.grad.clone() for p in module.parameters()])
    return [*steps, [group.sum(grad) / world_size for grad in own]]


def test_gradients_have_the_same_bits_before_and_after_ddp_orders_its_buckets(tmp_path):
    for first, *later, expected in run_ranks(gradients_of_steps, 3, 3, tmp_path=tmp_path):
        for grads in later:
            assert all(map(torch.equal, grads, first))
        torch.testing.assert_close(first, expected)
