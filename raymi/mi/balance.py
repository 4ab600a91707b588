"""The weight of the MI loss, from the gradients that both losses have at the logits.

The losses see the classifier through the logits of the global batch alone. Their gradients there
are cheap, say at once which loss drives training, and are all that backpropagation through the
classifier needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raymi.collectives import Collectives


def gradients_at(loss: Tensor, logits: Sequence[Tensor]) -> list[Tensor]:
    """d loss / d logits for each (b, K) tensor; zeros where the loss does not depend on one."""
    if not loss.requires_grad:
        return [torch.zeros_like(z) for z in logits]
    return list(torch.autograd.grad(loss, logits, allow_unused=True, materialize_grads=True))


def global_norm(grads: Sequence[Tensor], group: Collectives) -> Tensor:
    """Euclidean norm over the concatenated logits of the global batch: 0-d, fp32 at least."""
    parts = [g.double() if g.dtype == torch.float64 else g.float() for g in grads]
    squares = torch.stack([part.square().sum() for part in parts]).sum()
    return group.sum(squares).sqrt() / group.world_size


def balanced_weight(norm_mi: Tensor, norm_adv: Tensor, rho: float, largest: float) -> Tensor:
    """The weight with which the MI gradient has rho times the norm of the adversarial loss's.

    0 where the MI gradient vanishes against it (below 1e-12), at most `largest`.

    Args: norm_mi, norm_adv, 0-d norms from `global_norm`.
    Returns: 0-d, detached.
    """
    # alpha = rho |g_adv| / |g_mi|
    vanishes = norm_mi <= 1e-12 * norm_adv
    weight = rho * norm_adv / torch.where(vanishes, torch.ones_like(norm_mi), norm_mi)
    return torch.where(vanishes, torch.zeros_like(weight), weight.clamp(max=largest)).detach()


def with_gradient(value: Tensor, logits: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    """A loss of the given value whose gradient at the logits is the given one.

    Backpropagating it equals backpropagating the losses that the gradients came from, without
    keeping or walking their graphs again.
    """
    linear = torch.stack([(z * g).sum() for z, g in zip(logits, grads, strict=True)]).sum()
    return linear + (value - linear).detach()
