"""Weight of the MI loss, from the gradients of both losses at the logits.

The losses depend on the classifier through the logits of the global batch only. Their gradients
there are cheap, show which loss drives training, and are all that backpropagation through the
classifier needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raymi.collectives import Metrics, Shard
from raymi.fields import value_at


def gradients_at(loss: Tensor, logits: Sequence[Tensor]) -> list[Tensor]:
    """Returns d loss / d logits for each (b, K) tensor; zeros if the loss does not depend on it."""
    if not loss.requires_grad:
        return [torch.zeros_like(z) for z in logits]
    return list(torch.autograd.grad(loss, logits, allow_unused=True, materialize_grads=True))


def global_norms(grads: Sequence[Sequence[Tensor]], shard: Shard) -> Tensor:
    """Computes the Euclidean norm of each list of gradients over the logits of the global batch.

    Returns:
        (number of lists,), fp32 at least.
    """
    squares = [torch.stack([_precise(g).square().sum() for g in each]).sum() for each in grads]
    return shard.sum(torch.stack(squares)).sqrt() / shard.world_size


def _precise(x: Tensor) -> Tensor:
    """Returns a tensor in fp32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def balanced_weight(norm_mi: Tensor, norm_adv: Tensor, rho: float, largest: float) -> Tensor:
    """Returns the weight that scales the MI gradient to rho times the adversarial loss's norm.

    It is 0 where the relative norm of the MI gradient is below 1e-12.

    Args:
        norm_mi: 0-d norm of the MI gradient, from `global_norms`.
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


class FixedWeight:
    """Weight of the MI loss that no gradient changes, the paper's alpha.

    Args:
        weight: a number or a schedule, see `fields.value_at`.

    Attributes:
        progress: share of the phase that is over; set before each step.
    """

    progress = 0.0

    def __init__(self, weight: float | str) -> None:
        self.weight = weight

    def __call__(self, norm_mi: Tensor, norm_adv: Tensor) -> Tensor:
        """Returns the weight, 0-d, for the norms of both gradients."""
        return torch.full_like(norm_mi, value_at(self.weight, self.progress))


class BalancedWeight:
    """Weight that gives the MI gradient rho times the norm of the adversarial loss's.

    Args:
        rho: ratio of the norms, a number or a schedule, see `fields.value_at`.
        largest: largest weight.

    Attributes:
        progress: share of the phase that is over; set before each step.
    """

    progress = 0.0

    def __init__(self, rho: float | str, largest: float) -> None:
        self.rho, self.largest = rho, largest

    def __call__(self, norm_mi: Tensor, norm_adv: Tensor) -> Tensor:
        """Returns the weight, 0-d, for the norms of both gradients."""
        return balanced_weight(norm_mi, norm_adv, value_at(self.rho, self.progress), self.largest)


class Objective:
    """Sum of the adversarial loss and the weighted MI loss (Eq. 9).

    Args:
        weight: returns alpha, 0-d, for the norms of the MI and the adversarial gradient at the
            logits of the global batch.
    """

    def __init__(self, weight: FixedWeight | BalancedWeight) -> None:
        self.weight = weight

    def __call__(
        self, loss_adv: Tensor, loss_mi: Tensor | None, logits: Sequence[Tensor], shard: Shard
    ) -> tuple[Tensor, Metrics]:
        """Computes the loss of the classifier, and metrics.

        Args:
            loss_adv: 0-d.
            loss_mi: 0-d; None: the batch has no MI loss.
            logits: (b, K) each; those without gradient do not count.
            shard: place of the b samples in the global batch.
        """
        if loss_mi is None:
            return loss_adv, {"loss": loss_adv.detach()}
        outputs = [z for z in logits if z.requires_grad]
        grads_adv, grads_mi = gradients_at(loss_adv, outputs), gradients_at(loss_mi, outputs)
        norm_adv, norm_mi = global_norms([grads_adv, grads_mi], shard)
        weight = self.weight(norm_mi, norm_adv)
        # L_adv + alpha * L_mi
        grads = [g_adv + weight * g_mi for g_adv, g_mi in zip(grads_adv, grads_mi, strict=True)]
        value = (loss_adv + weight * loss_mi).detach()
        return with_gradient(value, outputs, grads), {
            "loss": value,
            "loss_mi": loss_mi.detach(),
            "mi/weight": weight,
            "mi/grad_norm": weight * norm_mi,
            "grad_norm_adv": norm_adv,
        }
