"""MART."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymi.fields import Weight, value_at
from raymi.losses.base import AdversarialLoss

if TYPE_CHECKING:
    from torch import Tensor

    from raymi.collectives import Shard


class MART(AdversarialLoss):
    """Boosted cross-entropy plus beta times a weighted KL, in nats.

    The KL of a sample is weighted by the natural probability of wrong classes.

    Source: Wang et al. 2020, Eq. 8-11; 1.0001 and 1.0000001 as in the authors' code. The KL is of
        log-probabilities, as in TRADES here, where the authors add 1e-12 to probabilities.
    """

    title = "MART"
    namid_title = "NAMID_M"
    needs_clean_gradient = True

    class Settings(AdversarialLoss.Settings):
        """Settings of MART."""

        beta: Weight = 5.0
        """Weight of the robust term."""

    settings: Settings

    def __call__(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Returns boosted cross-entropy plus weighted KL; arguments as of `AdversarialLoss`."""
        import torch
        import torch.nn.functional as F

        # BCE = -log p_adv[y] - log(1 - max_{k != y} p_adv[k]);  + beta * KL(p || p_adv) (1 - p[y])
        log_p, log_p_adv = F.log_softmax(logits, dim=1), F.log_softmax(logits_adv, dim=1)
        p_adv, p_true = log_p_adv.exp(), log_p.exp().gather(1, y[:, None])[:, 0]
        runner_up = p_adv.scatter(1, y[:, None], 0).amax(dim=1)
        boosted = F.nll_loss(log_p_adv, y, reduction="sum") - torch.log(1.0001 - runner_up).sum()
        divergence = F.kl_div(log_p_adv, log_p, reduction="none", log_target=True).sum(dim=1)
        robust = (divergence * (1.0000001 - p_true)).sum()
        beta = value_at(self.settings.beta, self.progress)
        return shard.world_size * (boosted + beta * robust) / shard.num
