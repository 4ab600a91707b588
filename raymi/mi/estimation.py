"""Task of the two estimators: a module whose forward maps a batch to a loss.

Losses and metrics follow the convention of `raymi.collectives`: their mean over workers is the
value for the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raymi.collectives import Metrics, Shard
from raymi.mi.bounds import F_DIVERGENCES
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.matching import Matching, match
from raymi.mi.objectives import estimator_loss, selected
from raymi.mi.reference import (
    adversarial_estimator_loss,
    natural_estimator_loss,
    selected_over_batch,
)
from raymi.mi.settings import MIConfig
from raymi.models.micro_batches import in_pieces


class EstimatorTask(nn.Module):
    """Task of both estimators on outputs of the classifier (Eq. 4 or 5).

    Args:
        estimators: of both kinds of MI; an ablated one is None.
        mi: their settings.
        micro_batch: samples of a worker per pass of a local encoder; None: all.
    """

    def __init__(
        self, estimators: MIEstimators, mi: MIConfig, micro_batch: int | None = None
    ) -> None:
        super().__init__()
        self.estimators = estimators
        self.mi = mi
        self.micro_batch = micro_batch

    def forward(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> tuple[Tensor, Metrics]:
        """Computes loss and metrics of both estimators.

        Args:
            x: (b, 3, H, W).
            x_adv: (b, 3, H, W).
            logits: (b, K) of x, detached.
            logits_adv: (b, K) of x_adv, detached.
            y: (b,).
            shard: place of the samples in the global batch.
        """
        natural, adversarial = self.estimators.natural, self.estimators.adversarial
        terms: list[Tensor] = []
        metrics: Metrics = {}
        if natural is not None:
            whole = self.mi.natural_pattern == "adversarial"  # WMIM
            u, own, other = (x_adv, logits_adv, logits) if whole else (x, logits, logits_adv)
            loss, estimates = self._estimator_loss("natural", natural, u, own, other, y, shard)
            terms.append(loss)
            metrics |= estimates
        if adversarial is not None:
            loss, estimates = self._estimator_loss(
                "adversarial", adversarial, x_adv - x, logits_adv, logits, y, shard
            )
            terms.append(loss)
            metrics |= estimates
        total = torch.stack(terms).sum()
        return total, {"loss_estimators": total.detach(), **metrics}

    def _estimator_loss(
        self,
        kind: str,
        estimator: LocalDIM,
        u: Tensor,
        own_logits: Tensor,
        other_logits: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> tuple[Tensor, Metrics]:
        """Computes the loss of the estimator of pattern u, which belongs to `own_logits`."""
        mi = self.mi
        features = in_pieces(estimator.local_features, estimator, u, shard, self.micro_batch)
        scores = score_outputs(estimator, own_logits, features, shard, mi, y)
        with torch.no_grad():
            everyone = scores
            if mi.negative_classes == "other":  # which is no MI
                everyone = score_outputs(estimator, own_logits, features, shard, mi)
            metrics = {
                f"mi/{kind}": shard.mean(everyone.infonce()),
                f"mi/{kind}_dv": shard.mean(everyone.donsker_varadhan()),
            }
        own = scores.bound(mi.bound)
        if mi.objective == "mim":
            return estimator_loss(own, None, None, shard), metrics

        other = score_outputs(estimator, other_logits, features, shard, mi, y).bound(mi.bound)
        clean, adv = (own_logits, other_logits) if kind == "natural" else (other_logits, own_logits)
        if mi.objective == "contrast":
            chosen = selected(clean, adv, y)
            return estimator_loss(own, other, chosen, shard, clip=mi.clip_contrast), metrics
        wrong, right = selected_over_batch(clean, adv, y, shard)
        if mi.objective == "mim-released":
            mask = None if kind == "natural" else wrong
            return estimator_loss(own, None, mask, shard), metrics
        reference = natural_estimator_loss if kind == "natural" else adversarial_estimator_loss
        return reference(own, other, wrong, right, shard), metrics


def score_outputs(
    estimator: LocalDIM,
    logits: Tensor,
    features: Tensor,
    shard: Shard,
    mi: MIConfig,
    y: Tensor | None = None,
) -> Matching:
    """Scores outputs against the patterns of all workers, or of this one (`mi.negatives`).

    Args:
        estimator: of the scores.
        logits: (b, K).
        features: (b, H, P), of the patterns.
        shard: place of the samples in the global batch.
        mi: settings.
        y: (b,) labels for `mi.negative_classes`; None: negatives of all classes, as of an MI.
    """
    if mi.negatives == "local":
        shard = shard.own()
    outputs = estimator.global_features(logits)
    divergence = mi.bound if mi.bound in F_DIVERGENCES else None
    return match(
        outputs,
        features,
        shard,
        divergence=divergence,
        score_memory=mi.score_memory,
        y=y if mi.negative_classes == "other" else None,
    )
