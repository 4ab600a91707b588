"""Weight of the MI loss, from the gradients of both losses at the logits.

The losses depend on the classifier through the logits of the global batch only. Their gradients
there are cheap, show which loss drives training, and are all that backpropagation through the
classifier needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raymi.collectives import Collectives


def gradients_at(loss: Tensor, logits: Sequence[Tensor]) -> list[Tensor]:
    """Returns d loss / d logits for each (b, K) tensor; zeros if the loss does not depend on it."""
    if not loss.requires_grad:
        return [torch.zeros_like(z) for z in logits]
    return list(torch.autograd.grad(loss, logits, allow_unused=True, materialize_grads=True))


def global_norm(grads: Sequence[Tensor], group: Collectives) -> Tensor:
    """Computes the Euclidean norm over the logits of the global batch: 0-d, fp32 at least."""
    parts = [g.double() if g.dtype == torch.float64 else g.float() for g in grads]
    squares = torch.stack([part.square().sum() for part in parts]).sum()
    return group.sum(squares).sqrt() / group.world_size


def balanced_weight(norm_mi: Tensor, norm_adv: Tensor, rho: float, largest: float) -> Tensor:
    """Returns the weight that scales the MI gradient to rho times the adversarial loss's norm.

    It is 0 where the relative norm of the MI gradient is below 1e-12.

    Args:
        norm_mi: 0-d norm of the MI gradient, from `global_norm`.
        norm_adv: 0-d norm of the adversarial loss's gradient.
        rho: target ratio of the norms.
        largest: largest weight.

    Returns:
        0-d, detached.
    """
    # alpha = rho |g_adv| / |g_mi|
    vanishes = norm_mi <= 1e-12 * norm_adv
    weight = rho * norm_adv / torch.where(vanishes, torch.ones_like(norm_mi), norm_mi)
    return torch.where(vanishes, torch.zeros_like(weight), weight.clamp(max=largest)).detach()


def with_gradient(value: Tensor, logits: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    """Returns a loss with the given value and the given gradient at the logits.

    Its backward pass equals the backward pass of the losses behind the gradients, without their
    graphs.
    """
    linear = torch.stack([(z * g).sum() for z, g in zip(logits, grads, strict=True)]).sum()
    return linear + (value - linear).detach()
