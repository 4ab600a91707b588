"""Adversarial training (AT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymi.fields import Share
from raymi.losses.base import AdversarialLoss

if TYPE_CHECKING:
    from torch import Tensor

    from raymi.collectives import Shard


class AT(AdversarialLoss):
    """Cross-entropy of the adversarial output, in nats.

    Source: Madry et al. 2018, Eq. 2.1.
    """

    title = "AT"
    namid_title = "NAMID"
    takes_soft_targets = True

    class Settings(AdversarialLoss.Settings):
        """Settings of AT."""

        label_smoothing: Share = 0.0
        """Share of the cross-entropy's target that is spread over all classes."""

    settings: Settings

    def __call__(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Returns the cross-entropy of h(x_adv); arguments as of `AdversarialLoss`."""
        import torch.nn.functional as F

        # CE(h(x_adv), y)
        smoothing = self.settings.label_smoothing
        total = F.cross_entropy(logits_adv, y, reduction="sum", label_smoothing=smoothing)
        return shard.world_size * total / shard.num
