"""TRADES."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymi.fields import Weight, value_at
from raymi.losses.base import AdversarialLoss

if TYPE_CHECKING:
    from torch import Tensor

    from raymi.collectives import Shard


class TRADES(AdversarialLoss):
    """Natural cross-entropy plus beta times KL(p(x) || p(x_adv)), in nats.

    Source: Zhang et al. 2019, Eq. 5. With log-probabilities on both sides, its gradient is finite
        where a class has probability 0 (torch's KL on probabilities gives NaN there).
    """

    title = "TRADES"
    namid_title = "NAMID_T"
    attack_objective = "kl"
    needs_clean_gradient = True

    class Settings(AdversarialLoss.Settings):
        """Settings of TRADES."""

        beta: Weight = 6.0
        """Weight of the robust term."""

    settings: Settings

    def __call__(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Returns cross-entropy plus weighted KL; arguments as of `AdversarialLoss`."""
        import torch.nn.functional as F

        # CE(h(x), y) + beta * KL(p || p_adv)
        log_p, log_p_adv = F.log_softmax(logits, dim=1), F.log_softmax(logits_adv, dim=1)
        natural = F.nll_loss(log_p, y, reduction="sum")
        robust = F.kl_div(log_p_adv, log_p, reduction="sum", log_target=True)
        beta = value_at(self.settings.beta, self.progress)
        return shard.world_size * (natural + beta * robust) / shard.num
