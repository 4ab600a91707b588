"""Estimates by frozen estimators, which store only their slopes at the logits for backward.

The estimate of sample i depends on the classifier through its own logits only. So backpropagation
needs one slope (K,) for each sample, and neither the scores (B, B, P) nor the local features
(B, H, P).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def sloped_estimates(
    estimate: Callable[[list[Tensor]], list[Tensor]], outputs: Sequence[Tensor]
) -> list[Tensor]:
    """Computes per-sample estimates that store only their slopes for the backward pass.

    Args:
        estimate: maps logits (b, K) each to as many (b,); the i-th value of the k-th result depends
            on the i-th row of the k-th argument only.
        outputs: logits (b, K) each.

    Returns:
        (b,) each, with the values and the gradients of `estimate(outputs)`.
    """
    leaves = [
        z.detach().requires_grad_(torch.is_grad_enabled() and z.requires_grad) for z in outputs
    ]
    learnt = [leaf for leaf in leaves if leaf.requires_grad]
    with torch.set_grad_enabled(bool(learnt)):
        values = estimate(leaves)
    if not learnt:
        return values
    # row i of a slope: d value_i / d z_i
    slopes = iter(torch.autograd.grad([value.sum() for value in values], learnt))
    return [
        _Sloped.apply(z, value.detach(), next(slopes)) if leaf.requires_grad else value.detach()
        for z, leaf, value in zip(outputs, leaves, values, strict=True)
    ]


class _Sloped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return grads[0][:, None] * slopes, None, None
