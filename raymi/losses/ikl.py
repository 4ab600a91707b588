"""Improved KL divergence (IKL)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymi.fields import Positive, Weight, value_at
from raymi.losses.base import AdversarialLoss

if TYPE_CHECKING:
    from torch import Tensor

    from raymi.collectives import Collectives, Shard


class IKL(AdversarialLoss):
    """TRADES whose KL is split into a cross-entropy and a weighted square of logit differences.

    The square has a gradient at both outputs. Its weights are class means of the softened natural
    output, of the last epoch; in the first one all classes weigh the same.

    Source: Cui et al. 2024 (arXiv 2305.13948). The sum over pairs of classes is computed in O(K).
    """

    title = "IKL"
    attack_objective = "kl"
    needs_clean_gradient = True

    class Settings(AdversarialLoss.Settings):
        """Settings of IKL."""

        beta: Weight = 20.0
        """Weight of the robust term."""
        soft_weight: Weight = 4.0
        """Weight of the cross-entropy of h(x_adv) against h(x)."""
        class_temperature: Positive = 4.0
        """Temperature of the class means that weigh the square of logit differences."""

    settings: Settings

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._weights: Tensor | None = None  # (K, K), a row for each class
        self._sums: Tensor | None = None  # (K, K + 1), of this epoch and all workers; counts last

    def __call__(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Returns cross-entropies plus weighted squares; arguments as of `AdversarialLoss`."""
        import torch
        import torch.nn.functional as F

        # CE(h(x), y) + alpha CE(sg p, p') + beta/4 sum_jk w_j w_k ((z_j - z_k) - (z'_j - z'_k))^2
        natural = F.cross_entropy(logits, y, reduction="sum")
        soft = F.cross_entropy(logits_adv, logits.detach().softmax(dim=1), reduction="sum")
        if self._weights is None:
            w = torch.full_like(logits, 1 / logits.shape[1])
        else:
            w = self._weights.to(logits)[y]
        d = logits - logits_adv
        pairs = w.sum(dim=1) * (w * d.square()).sum(dim=1) - (w * d).sum(dim=1).square()
        alpha = value_at(self.settings.soft_weight, self.progress)
        beta = value_at(self.settings.beta, self.progress)
        robust = alpha * soft + beta / 2 * pairs.sum()
        return shard.world_size * (natural + robust) / shard.num

    def observe(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard) -> None:
        """Adds softened natural outputs to the sums of this epoch."""
        import torch

        softened = (logits.double() / self.settings.class_temperature).softmax(dim=1)
        rows = torch.cat([softened, torch.ones_like(softened[:, :1])], dim=1)
        sums = rows.new_zeros(logits.shape[1], rows.shape[1]).index_add_(0, y, rows)
        before = torch.zeros_like(sums) if self._sums is None else self._sums.to(sums)
        self._sums = before + shard.sum(sums)

    def end_epoch(self, group: Collectives) -> None:
        """Computes the class means; a class without samples keeps its last ones."""
        import torch

        assert self._sums is not None
        counts = self._sums[:, -1:]
        uniform = torch.full_like(self._sums[:, :-1], 1 / len(counts))
        last = uniform if self._weights is None else self._weights.to(uniform)
        means = self._sums[:, :-1] / counts.clamp(min=1)
        self._weights, self._sums = torch.where(counts > 0, means, last), None

    def state_dict(self) -> dict[str, Any]:
        """Returns class means and sums."""
        return {"weights": self._weights, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores class means and sums."""
        self._weights, self._sums = state["weights"], state["sums"]
