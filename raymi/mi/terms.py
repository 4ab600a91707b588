"""MI terms of the classifier's loss, the second term of Eq. 9.

Losses and metrics follow the convention of `raymi.collectives`: their mean over workers is the
value for the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raymi import counter_rng
from raymi.collectives import Collectives, Metrics, Shard
from raymi.counter_rng import random_key
from raymi.mi.estimation import score_outputs
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.frozen import sloped_estimates
from raymi.mi.objectives import PairMI, classifier_mi_loss, selected
from raymi.mi.reference import selected_over_batch
from raymi.mi.settings import MIConfig
from raymi.models.ema import WeightEMA
from raymi.models.micro_batches import in_pieces
from raymi.models.modes import evaluation_mode

_FLOORS = {"infonce": 0.0, "jsd": 0.0, "hellinger": 0.0, "gan": -2 * math.log(2)}
"""Values of capped bounds for independent variables, at which a minimised term is clamped."""


class MITerm:
    """MI term of the classifier's loss, by default none, without state.

    Attributes:
        needs_clean: whether h(x) is used.
        needs_clean_gradient: whether its gradient is used, too.
        closed_form: whether the term needs no estimators, and its metrics are MI of any block.
        progress: share of the phase that is over, in [0, 1); set before each step.
        averages: of the classifier's weights, which the term reads; updated after each step.
    """

    needs_clean: bool = False
    needs_clean_gradient: bool = False
    closed_form: bool = False
    progress: float = 0.0
    averages: Sequence[WeightEMA] = ()

    def target(self, x: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Returns the target of the adversarial loss and of its attack, by default the labels.

        Called first in a step; arguments as of a call of the term.
        """
        return y

    def __call__(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> tuple[Tensor | None, Metrics]:
        """Computes L_mi (Eq. 8) and metrics.

        Args:
            x: (b, 3, H, W) in [0, 1].
            x_adv: (b, 3, H, W) in [0, 1].
            logits: (b, K) of x.
            logits_adv: (b, K) of x_adv.
            y: (b,).
            shard: place of the b samples in the global batch.

        Returns:
            0-d loss whose mean over workers is the global batch's; None: this batch has none.
        """
        return None, {}

    def end_epoch(self, group: Collectives) -> None:
        """Called after the last step of an epoch, on every worker at the same point."""

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain values for the checkpoint; the same on every worker."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the content of `state_dict`."""


class RandomGradient(MITerm):
    """Control: Gaussian noise at h(x_adv) in place of the gradient of an MI loss."""

    def __call__(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> tuple[Tensor | None, Metrics]:
        """Returns the product of noise and outputs; arguments as of `MITerm`."""
        key = random_key("random gradient", shard.key)
        noise = counter_rng.normal(key, shard.index, (logits_adv.shape[1],)).to(logits_adv.dtype)
        return shard.mean((noise * logits_adv).sum(dim=1)), {}


class EstimatedMI(MITerm):
    """L_mi of Eq. 8 by estimators, frozen here: in eval mode, without gradients.

    Args:
        estimators: of both kinds of MI; an ablated one is None.
        mi: settings.
        micro_batch: samples of a worker per pass of a local encoder; None: all.
    """

    needs_clean = True

    def __init__(
        self, estimators: MIEstimators, mi: MIConfig, micro_batch: int | None = None
    ) -> None:
        self.estimators, self.mi, self.micro_batch = estimators, mi, micro_batch
        self.needs_clean_gradient = mi.needs_clean_gradient

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
        if shard.num < 2:
            return None, {}
        mask = self._mask(logits, logits_adv, y, shard)
        natural_range, adversarial_range = self._ranges(shard, logits_adv.shape[1])
        with evaluation_mode(self.estimators):
            pattern = x if self.mi.natural_pattern == "clean" else x_adv
            natural = self._pair(self.estimators.natural, pattern, logits, logits_adv, y, shard)
            adversarial = self._pair(
                self.estimators.adversarial, x_adv - x, logits, logits_adv, y, shard
            )
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

    def _pair(
        self,
        estimator: LocalDIM | None,
        u: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> PairMI | None:
        """Returns the MI of pattern u with the outputs that the loss needs."""
        if estimator is None:
            return None
        with torch.no_grad():
            features = in_pieces(estimator.local_features, estimator, u, shard, self.micro_batch)

        def estimate(z: Tensor) -> Tensor:
            return score_outputs(estimator, z, features, shard, self.mi, y).bound(self.mi.bound)

        outputs = [logits_adv, logits] if self.needs_clean_gradient else [logits_adv]
        return PairMI(*(sloped_estimates(estimate, z) for z in outputs))
