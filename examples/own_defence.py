"""Trains with a defence of one's own, a loss class in this file.

python examples/own_defence.py

python -m raymi.train recipe=quickstart-at loss.base=own_defence:LogitPairing (in this folder)
"""

import torch.nn.functional as F
from torch import Tensor

import raymi
from raymi.collectives import Shard
from raymi.losses import AdversarialLoss


class LogitPairing(AdversarialLoss):
    """Mean cross-entropy of h(x) and h(x_adv), plus a weighted squared distance of both.

    Source: Kannan et al. 2018 (arXiv 1803.06373).
    """

    title = "ALP"  # in reports
    needs_clean_gradient = True

    class Settings(AdversarialLoss.Settings):
        """Settings of LogitPairing."""

        beta: float = 0.5
        """Weight of the distance."""

    def __call__(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Returns the loss of the global batch: b samples of (b, K) outputs are this worker's."""
        clean = F.cross_entropy(logits, y, reduction="none")
        robust = F.cross_entropy(logits_adv, y, reduction="none")
        apart = (logits - logits_adv).square().mean(dim=1)
        return shard.mean((clean + robust) / 2 + self.settings.beta * apart)


if __name__ == "__main__":
    settings = {"optim.epochs": 3, "data.limit": 500}
    result = raymi.fit("quickstart-at", loss=LogitPairing(beta=2.0), settings=settings, workers=0)
    print({name: f"{value:.1%}" for name, value in result.metrics.items()}, result.path)
