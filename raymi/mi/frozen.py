"""Estimates by frozen estimators, which store only their slopes at the logits for backward.

The estimate of sample i depends on the classifier through its own logits only. So backpropagation
needs one slope (K,) for each sample, and neither the scores (B, B, P) nor the local features
(B, H, P).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def sloped_estimates(estimate: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Computes per-sample estimates that store only their slopes for the backward pass.

    Args:
        estimate: maps logits (b, K) to (b,); the i-th value depends on the i-th row only.
        logits: (b, K).

    Returns:
        (b,) with the value and the gradient of `estimate(logits)`.
    """
    if not (torch.is_grad_enabled() and logits.requires_grad):
        with torch.no_grad():
            return estimate(logits)
    leaf = logits.detach().requires_grad_()
    values = estimate(leaf)
    (slopes,) = torch.autograd.grad(values.sum(), leaf)  # row i: d value_i / d z_i
    return _Sloped.apply(logits, values.detach(), slopes)


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
