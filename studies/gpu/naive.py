"""Adversarial training as a plain PyTorch script does it, in fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def naive_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
) -> Tensor:
    """Attacks a batch with PGD in L_inf and updates the classifier; returns the loss.

    Args:
        model: images (B, 3, H, W) in [0, 1] to logits (B, K).
        optimizer: of its parameters.
        x: (B, 3, H, W) in [0, 1].
        y: (B,) labels.
        eps: radius in pixel units.
        alpha: step size in pixel units.
        steps: number of PGD steps.
    """
    model.eval()
    x_adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
        x_adv = x_adv.detach() + alpha * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x_adv.detach()), y)
    loss.backward()
    optimizer.step()
    return loss.detach()
