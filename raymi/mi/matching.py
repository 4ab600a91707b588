"""Scores over a global batch, reduced to the terms of a bound where the local features are.

The local features (b, H, P) are large, the global ones (b, H) small. So each worker gathers the
global features of all B samples, scores them against its own patterns, takes a partial logsumexp
over its own columns, and sends each worker the parts of its rows. A worker communicates
O(B (H + P)) numbers, never local features. Scores (b, B, P) are computed a few columns at a time,
and again in the backward pass; none are stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raymi.collectives import Shard
from raymi.mi.bounds import F_DIVERGENCES


@dataclass(frozen=True)
class Matching:
    """Scores of a worker's own b samples, reduced over the global batch of B.

    Args:
        positive: (b, P), T[i, i, p].
        log_negatives: (b, P), logsumexp of T[i, j, p] over j != i.
        num: B.
        divergence: name of the f-divergence of `negative`; None: none requested.
        negative: (b, P), mean of its negative term of T[i, j, p] over j != i.
        counts: (b,), negatives of each sample; None: num - 1. Samples without any have value 0.
    """

    positive: Tensor
    log_negatives: Tensor
    num: int
    divergence: str | None = None
    negative: Tensor | None = None
    counts: Tensor | None = None

    def infonce(self) -> Tensor:
        """Computes (b,) nats, each at most log B; equals `bounds.infonce`."""
        log_candidates = torch.logaddexp(self.positive, self.log_negatives)
        if self.counts is not None:
            values = (self.positive - log_candidates).mean(dim=1) + (self.counts + 1).log()
            return torch.where(self.counts > 0, values, 0)
        return (self.positive - log_candidates + math.log(max(self.num, 1))).mean(dim=1)

    def donsker_varadhan(self) -> Tensor:
        """Computes (b,) nats, zeros for B = 1; equals `bounds.donsker_varadhan`."""
        if self.num <= 1:
            return 0 * self.positive.mean(dim=1)
        if self.counts is not None:
            values = (self.positive - self.log_negatives).mean(dim=1)
            return torch.where(self.counts > 0, values + self.counts.clamp(min=1).log(), 0)
        return (self.positive - self.log_negatives + math.log(self.num - 1)).mean(dim=1)

    def f_divergence(self) -> Tensor:
        """Computes (b,), not MI in nats; equals `bounds.f_divergence`."""
        assert self.divergence is not None, "call match(..., divergence=name)"
        assert self.negative is not None
        return (F_DIVERGENCES[self.divergence].positive(self.positive) - self.negative).mean(dim=1)

    def reference_donsker_varadhan(self) -> Tensor:
        """Computes (b,) nats, no bound; equals `bounds.reference_donsker_varadhan`."""
        return (self.positive - self.reference_log_mean()).mean(dim=1)

    def reference_log_mean(self) -> Tensor:
        """Computes the authors' negative term of Donsker-Varadhan (b, P), with one more exp 0."""
        log_negatives = torch.logaddexp(self.log_negatives, torch.zeros_like(self.log_negatives))
        return log_negatives - math.log(max(self.num - 1, 1))

    def reference_infonce(self) -> Tensor:
        """Computes (b,), not MI in nats; equals `bounds.reference_infonce`."""
        own = self.positive.new_tensor(math.log(self.positive.shape[1]) - 10)
        negatives = torch.logaddexp(torch.logsumexp(self.log_negatives, dim=1, keepdim=True), own)
        return (self.positive - torch.logaddexp(self.positive, negatives)).mean(dim=1)

    def bound(self, name: str) -> Tensor:
        """Computes the bound or objective of a name of `MIConfig.bound`: (b,)."""
        if name in F_DIVERGENCES:
            assert name == self.divergence, f"call match(..., divergence={name!r})"
            return self.f_divergence()
        return {
            "infonce": self.infonce,
            "dv": self.donsker_varadhan,
            "infonce-released": self.reference_infonce,
            "dv-released": self.reference_donsker_varadhan,
        }[name]()


def match(
    global_features: Tensor,
    local_features: Tensor,
    shard: Shard,
    *,
    divergence: str | None = None,
    score_memory: float = math.inf,
    y: Tensor | None = None,
) -> Matching:
    """Scores all outputs of the global batch against all of its patterns; see `match_each`."""
    pairs = [(global_features, local_features)]
    (matching,) = match_each(pairs, shard, divergence=divergence, score_memory=score_memory, y=y)
    return matching


def match_each(
    pairs: Sequence[tuple[Tensor, Tensor]],
    shard: Shard,
    *,
    divergence: str | None = None,
    score_memory: float = math.inf,
    y: Tensor | None = None,
) -> list[Matching]:
    """Scores outputs against patterns, for several pairs with the communication of one.

    Args:
        pairs: global features (b, H) of the worker's own outputs and local features (b, H, P) of
            its own patterns, one pair for each result.
        shard: place of the samples in the global batch of B.
        divergence: name of an f-divergence whose negative term is computed, too.
        score_memory: largest tensor of scores, in MiB; larger ones are computed in parts of at
            least one column, exactly.
        y: (b,) labels: negatives are patterns of other classes only, and bounds are objectives
            that an MI does not bound, for `infonce` and `donsker_varadhan`; None: all patterns.

    Returns:
        The `Matching` of the worker's own samples for each pair; exact in value and, under the
        convention of `raymi.collectives`, in gradient.
    """
    num = shard.num
    if num <= 1:
        return [_without_negatives(*pair, num, divergence) for pair in pairs]
    outputs = shard.gather_each([own for own, _ in pairs])  # (B, H) each
    classes = None if y is None else shard.gather(y)  # (B,)
    rows = shard.first + torch.arange(len(pairs[0][1]), device=outputs[0].device)
    reduced = [
        _Reduced.apply(
            everyone, local, rows, classes, divergence, _columns_per_part(local, num, score_memory)
        )
        for everyone, (_, local) in zip(outputs, pairs, strict=True)
    ]
    positives, log_sums, totals = zip(*reduced, strict=True)
    if y is not None and classes is not None:
        counts = y[:, None].ne(classes).sum(dim=1)
        alone = (counts == 0)[:, None]  # their value is 0, not NaN
        counts = counts.to(positives[0].dtype)
        return [
            Matching(positive, parts.masked_fill(alone, 0.0).logsumexp(dim=0), num, counts=counts)
            for positive, parts in zip(positives, shard.exchange_each(log_sums), strict=True)
        ]
    received = shard.exchange_each(log_sums if divergence is None else log_sums + totals)
    log_negatives = [parts.logsumexp(dim=0) for parts in received[: len(pairs)]]  # (W, b, P)
    if divergence is None:
        return [Matching(*terms, num) for terms in zip(positives, log_negatives, strict=True)]
    negatives = [parts.sum(dim=0) / (num - 1) for parts in received[len(pairs) :]]
    return [
        Matching(positive, log_negative, num, divergence, negative)
        for positive, log_negative, negative in zip(
            positives, log_negatives, negatives, strict=True
        )
    ]


def _without_negatives(
    global_features: Tensor, local_features: Tensor, num: int, divergence: str | None
) -> Matching:
    """Returns the `Matching` of a batch of at most one sample."""
    positive = (global_features[:, :, None] * local_features).sum(dim=1)
    no_negatives = torch.full_like(positive, -math.inf)
    return Matching(positive, no_negatives, num, divergence, torch.zeros_like(positive))


def _columns_per_part(local_features: Tensor, num: int, score_memory: float) -> int:
    """Returns the number of columns per part."""
    bytes_per_column = num * local_features.shape[2] * local_features.element_size()
    columns = min(score_memory * 2**20 / bytes_per_column, len(local_features))
    return max(1, int(columns))


class _Reduced(torch.autograd.Function):
    """Reduction of the scores of a worker's own columns, a few columns at a time.

    Args:
        outputs: (B, H) global features.
        features: (b, H, P) local features of the samples `rows`.
        rows: (b,) indices of the worker's samples in the batch.
        classes: (B,) labels, whose equal pairs are no negatives; None: own pairs alone.
        divergence: name of an f-divergence, or None.
        part: columns that are scored together.

    Returns:
        (b, P) scores of matching pairs; (B, P) logsumexp over the negatives, -inf without
        any; (B, P) sum of the divergence's negative term over them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        outputs: Tensor,
        features: Tensor,
        rows: Tensor,
        classes: Tensor | None,
        divergence: str | None,
        part: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        positive = features.new_empty(len(features), features.shape[2])
        log_sum = features.new_full((len(outputs), features.shape[2]), -math.inf)
        total = torch.zeros_like(log_sum)
        for columns in _parts(len(features), part):
            scores, own = _scores(outputs, features[columns], rows[columns], classes)
            positive[columns] = scores[_pairs(rows[columns])]
            if divergence is not None:
                term = F_DIVERGENCES[divergence].negative(scores.masked_fill(own[..., None], 0.0))
                total += term.masked_fill(own[..., None], 0.0).sum(dim=0)
            others = torch.logsumexp(scores.masked_fill_(own[..., None], -math.inf), dim=0)
            log_sum = torch.logaddexp(log_sum, others)
        ctx.save_for_backward(outputs, features, rows, classes, log_sum)
        ctx.divergence, ctx.part = divergence, part
        return positive, log_sum, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_positive, grad_log_sum, grad_total = grads
        outputs, features, rows, classes, log_sum = ctx.saved_tensors
        grad_outputs = torch.zeros_like(outputs)
        grad_features = torch.empty_like(features) if ctx.needs_input_grad[1] else None
        for columns in _parts(len(features), ctx.part):
            own_features = features[columns]
            scores, own = _scores(outputs, own_features, rows[columns], classes)
            # d logsumexp / d score, plus the divergence's term; both of negatives alone
            slopes = torch.exp(scores - log_sum) * grad_log_sum
            if ctx.divergence is not None:
                slopes += _slope(ctx.divergence, scores.masked_fill(own[..., None], 0)) * grad_total
            if classes is not None:
                slopes.masked_fill_(own[..., None], 0.0)
            slopes[_pairs(rows[columns])] = grad_positive[columns]
            grad_outputs += torch.einsum("cbp,chp->bh", slopes, own_features)
            if grad_features is not None:
                grad_features[columns] = outputs.T @ slopes
        return grad_outputs, grad_features, None, None, None, None


def _parts(num: int, part: int) -> list[slice]:
    """Returns slices of `num` columns, `part` at a time."""
    return [slice(first, first + part) for first in range(0, num, part)]


def _pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the indices (columns, rows) of matching pairs in scores of the samples `rows`."""
    return torch.arange(len(rows), device=rows.device), rows


def _scores(
    outputs: Tensor, features: Tensor, rows: Tensor, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores outputs (B, H) against features (c, H, P), column by column.

    Returns:
        (c, B, P) scores, and (c, B) bool, true for pairs that are no negatives: of one sample, or
        of one class.
    """
    if classes is None:
        own = rows[:, None] == torch.arange(len(outputs), device=rows.device)
    else:
        own = classes[rows][:, None] == classes
    return outputs @ features, own


def _slope(divergence: str, scores: Tensor) -> Tensor:
    """Computes the derivative of the divergence's negative term at each score."""
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F_DIVERGENCES[divergence].negative(leaf).sum(), leaf)
    return slope
