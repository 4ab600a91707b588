"""Task of the two estimators: a module whose forward maps a batch to a loss.

Losses and metrics follow the convention of `raymi.collectives`: their mean over workers is the
value for the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raymi.collectives import Metrics, Shard
from raymi.mi.bounds import F_DIVERGENCES
from raymi.mi.estimators import LocalDIM, MIEstimators, global_features_of, local_features_of
from raymi.mi.matching import Matching, match_each
from raymi.mi.objectives import estimator_loss, selected
from raymi.mi.reference import (
    adversarial_estimator_loss,
    natural_estimator_loss,
    selected_over_batch,
)
from raymi.mi.settings import MIConfig
from raymi.models.micro_batches import in_pieces, num_pieces


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
        mi = self.mi
        patterns = self._patterns(x, x_adv, logits, logits_adv)
        features = self._local_features(patterns, shard)

        def scored(outputs: list[Tensor], y: Tensor | None) -> list[Matching]:
            pairs = [
                (p.estimator, z, each)
                for p, z, each in zip(patterns, outputs, features, strict=True)
            ]
            return score_outputs(pairs, shard, mi, y)

        own_logits = [p.own_logits for p in patterns]
        scores = scored(own_logits, y)
        metrics: Metrics = {}
        with torch.no_grad():
            everyone = scores
            if mi.negative_classes == "other":  # which is no MI
                everyone = scored(own_logits, None)
            for pattern, each in zip(patterns, everyone, strict=True):
                metrics[f"mi/{pattern.kind}"] = shard.mean(each.infonce())
                metrics[f"mi/{pattern.kind}_dv"] = shard.mean(each.donsker_varadhan())
        own = [each.bound(mi.bound) for each in scores]
        other: list[Tensor | None] = [None] * len(patterns)
        if mi.objective not in ("mim", "mim-released"):
            other = [each.bound(mi.bound) for each in scored([p.other_logits for p in patterns], y)]
        terms = [
            self._loss(pattern.kind, own_mi, other_mi, logits, logits_adv, y, shard)
            for pattern, own_mi, other_mi in zip(patterns, own, other, strict=True)
        ]
        total = torch.stack(terms).sum()
        return total, {"loss_estimators": total.detach(), **metrics}

    def _patterns(
        self, x: Tensor, x_adv: Tensor, logits: Tensor, logits_adv: Tensor
    ) -> list[_Pattern]:
        """Returns the pattern of each estimator."""
        patterns = []
        natural, adversarial = self.estimators.natural, self.estimators.adversarial
        if natural is not None and self.mi.natural_pattern == "adversarial":  # WMIM
            patterns.append(_Pattern("natural", natural, x_adv, logits_adv, logits))
        elif natural is not None:
            patterns.append(_Pattern("natural", natural, x, logits, logits_adv))
        if adversarial is not None:
            noise = x_adv - x
            patterns.append(_Pattern("adversarial", adversarial, noise, logits_adv, logits))
        return patterns

    def _local_features(self, patterns: list[_Pattern], shard: Shard) -> list[Tensor]:
        """Returns the local features (b, H, P) of each pattern."""
        if num_pieces(max(shard.sizes), self.micro_batch) == 1:
            return local_features_of([p.estimator for p in patterns], [p.images for p in patterns])
        return [
            in_pieces(p.estimator.local_features, p.estimator, p.images, shard, self.micro_batch)
            for p in patterns
        ]

    def _loss(
        self,
        kind: str,
        own: Tensor,
        other: Tensor | None,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> Tensor:
        """Computes the loss of one estimator from its estimates (b,) of both outputs."""
        mi, natural = self.mi, kind == "natural"
        if mi.objective == "mim":
            return estimator_loss(own, None, None, shard)
        if mi.objective == "contrast":
            chosen = selected(logits, logits_adv, y)
            return estimator_loss(own, other, chosen, shard, clip=mi.clip_contrast)
        wrong, right = selected_over_batch(logits, logits_adv, y, shard)
        if other is None:  # mim-released
            return estimator_loss(own, None, None if natural else wrong, shard)
        reference = natural_estimator_loss if natural else adversarial_estimator_loss
        return reference(own, other, wrong, right, shard)


class _Pattern(NamedTuple):
    """Pattern of an estimator: images, the logits to which it belongs, and the others."""

    kind: str
    estimator: LocalDIM
    images: Tensor
    own_logits: Tensor
    other_logits: Tensor


Scored = tuple[LocalDIM, Tensor, Tensor]
"""Estimator, logits (b, K), and local features (b, H, P) of the patterns."""


def score_outputs(
    pairs: Sequence[Scored], shard: Shard, mi: MIConfig, y: Tensor | None = None
) -> list[Matching]:
    """Scores outputs against the patterns of all workers, or of this one (`mi.negatives`).

    Args:
        pairs: what is scored, with the communication of one pair.
        shard: place of the samples in the global batch.
        mi: settings.
        y: (b,) labels for `mi.negative_classes`; None: negatives of all classes, as of an MI.
    """
    if mi.negatives == "local":
        shard = shard.own()
    estimators, outputs, features = zip(*pairs, strict=True)
    return match_each(
        list(zip(global_features_of(estimators, outputs), features, strict=True)),
        shard,
        divergence=mi.bound if mi.bound in F_DIVERGENCES else None,
        score_memory=mi.score_memory,
        y=y if mi.negative_classes == "other" else None,
    )
