"""L_mi of Eq. 8 by estimators, the term of all forms of NAMID."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from raymi.mi.forms.base import MITerm, TermContext

if TYPE_CHECKING:
    from torch import Tensor

    from raymi.collectives import Metrics, Shard
    from raymi.mi.estimators import LocalDIM, MIEstimators
    from raymi.mi.objectives import PairMI
    from raymi.mi.settings import MIConfig

_FLOORS = {"infonce": 0.0, "jsd": 0.0, "hellinger": 0.0, "gan": -2 * math.log(2)}
"""Values of capped bounds for independent variables, at which a minimised term is clamped."""


class EstimatedMI(MITerm):
    """L_mi of Eq. 8 by estimators, frozen here: in eval mode, without gradients.

    Args:
        estimators: of both kinds of MI; an ablated one is None.
        mi: settings.
        micro_batch: samples of a worker per pass of a local encoder; None: all.
    """

    keys = None
    uses_estimators = True
    needs_clean = True

    def __init__(
        self, estimators: MIEstimators, mi: MIConfig, micro_batch: int | None = None
    ) -> None:
        self.estimators, self.mi, self.micro_batch = estimators, mi, micro_batch
        self.needs_clean_gradient = mi.needs_clean_gradient

    @classmethod
    def build(cls, context: TermContext) -> EstimatedMI:
        """Builds the term with the estimators of a phase."""
        assert context.estimators is not None
        return cls(context.estimators, context.mi, context.micro_batch)

    def __call__(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> tuple[Tensor | None, Metrics]:
        """Computes L_mi, and mean estimates in nats; None for one sample without negatives."""
        from raymi.mi.objectives import classifier_mi_loss
        from raymi.models.modes import evaluation_mode

        if shard.num < 2:
            return None, {}
        mask = self._mask(logits, logits_adv, y, shard)
        natural_range, adversarial_range = self._ranges(shard, logits_adv.shape[1])
        with evaluation_mode(self.estimators):
            natural, adversarial = self._pairs(x, x_adv, logits, logits_adv, y, shard)
        loss = classifier_mi_loss(
            natural,
            adversarial,
            mask,
            shard,
            difference=self.mi.difference,
            cosine=self.mi.cosine,
            natural_range=natural_range,
            adversarial_range=adversarial_range,
        )
        metrics = {
            f"mi/{name}_of_adversarial": shard.mean(kind.of_adversarial.detach())
            for name, kind in (("natural", natural), ("adversarial", adversarial))
            if kind is not None and self.mi.negative_classes == "all"
        }
        if mask is not None:
            metrics["mi/selected"] = shard.mean(mask.to(loss.dtype))
        return loss, metrics

    def _mask(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard) -> Tensor | None:
        """Returns (b,) bool, the samples of `mi.samples`; None: all."""
        from raymi.mi.objectives import selected
        from raymi.mi.reference import selected_over_batch

        if self.mi.samples == "all":
            return None
        if self.mi.samples == "selected":
            return selected(logits, logits_adv, y)
        return selected_over_batch(logits, logits_adv, y, shard)[0]

    def _ranges(
        self, shard: Shard, num_classes: int
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Returns the limits of the batch means of natural and adversarial MI, in nats."""
        natural, adversarial = (-math.inf, math.inf), (-math.inf, math.inf)
        if self.mi.clamp and self.mi.bound in ("dv", "dv-released"):
            candidates = max(shard.sizes) if self.mi.negatives == "local" else shard.num
            natural = adversarial = (0.0, math.log(max(candidates - 1, 1)))
        elif self.mi.clamp:
            adversarial = (_FLOORS.get(self.mi.bound, -math.inf), math.inf)
        if self.mi.natural_cap:
            natural = (natural[0], min(natural[1], math.log(num_classes)))
        return natural, adversarial

    def _pairs(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> list[PairMI | None]:
        """Returns natural and adversarial MI with the outputs that the loss needs."""
        import torch

        from raymi.mi.estimation import score_outputs
        from raymi.mi.frozen import sloped_estimates
        from raymi.mi.objectives import PairMI
        from raymi.models.micro_batches import in_pieces

        def encoded(estimator: LocalDIM, u: Tensor) -> Tensor:
            with torch.no_grad():
                return in_pieces(estimator.local_features, estimator, u, shard, self.micro_batch)

        natural, adversarial = self.estimators.natural, self.estimators.adversarial
        patterns = []
        if natural is not None:
            u = x if self.mi.natural_pattern == "clean" else x_adv
            patterns.append((natural, encoded(natural, u)))
        if adversarial is not None:
            patterns.append((adversarial, encoded(adversarial, x_adv - x)))
        outputs = [logits_adv, logits] if self.needs_clean_gradient else [logits_adv]
        scored = [pattern for pattern in patterns for _ in outputs]

        def estimates(logits_of_each: list[Tensor]) -> list[Tensor]:
            pairs = [
                (estimator, z, features)
                for (estimator, features), z in zip(scored, logits_of_each, strict=True)
            ]
            return [
                matching.bound(self.mi.bound)
                for matching in score_outputs(pairs, shard, self.mi, y)
            ]

        values = iter(sloped_estimates(estimates, outputs * len(patterns)))
        return [
            None if estimator is None else PairMI(*(next(values) for _ in outputs))
            for estimator in (natural, adversarial)
        ]
