"""Objectives of the authors' code where it departs from the paper, to reproduce its numbers.

`mi.form=released` uses them, for comparison with published numbers, not for training: the positive
pair is among its own negatives with score 0, samples are selected by a softmax over the *batch*,
the contrast is a cosine, and all terms are unbounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raymi.collectives import Shard
from raymi.mi.objectives import cosine_distance, cosine_of


def selected_over_batch(
    logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard
) -> tuple[Tensor, Tensor]:
    """Selects samples by the argmax over classes of a softmax over the batch axis.

    Eq. 6 is `objectives.selected`; here a sample's selection depends on the other samples.

    Args:
        logits: (b, K).
        logits_adv: (b, K).
        y: (b,).
        shard: place of the samples in the global batch.

    Returns:
        Two (b,) bool: clean right and adversarial wrong; both right.
    """
    # argmax_c z[i, c] - logsumexp_k z[k, c]
    right = _log_softmax_over_batch(logits, shard).argmax(dim=1) == y
    right_adv = _log_softmax_over_batch(logits_adv, shard).argmax(dim=1) == y
    return right & ~right_adv, right & right_adv


def natural_estimator_loss(
    own: Tensor, other: Tensor, wrong: Tensor, right: Tensor, shard: Shard
) -> Tensor:
    """Computes the authors' natural estimator loss; Eq. 5: max I_N(h(x)) - I_N(h(x_adv)).

    Args:
        own: (b,) nats, MI of x with h(x).
        other: (b,) nats, MI of x with h(x_adv).
        wrong: (b,) bool, from `selected_over_batch`.
        right: (b,) bool, from `selected_over_batch`.
        shard: place of the samples in the global batch.

    Returns:
        0-d.
    """
    # a = -own, b = -other, k = |w| + |r|:
    # 5 |cos_w(a, b)| + sum_w(a) / k + (5 |1 - cos_r(a, b)| + sum_r(a) / k) / 2
    either = wrong | right
    weights = wrong.to(own.dtype) + 0.5 * right.to(own.dtype)
    gain = shard.mean(weights * own, either)
    apart = cosine_of(own, other, wrong, shard).abs()
    return 5 * apart - gain + 2.5 * cosine_distance(own, other, right, shard)


def adversarial_estimator_loss(
    own: Tensor, other: Tensor, wrong: Tensor, right: Tensor, shard: Shard
) -> Tensor:
    """Computes the authors' adversarial estimator loss; Eq. 5: max I_A(h(x_adv)) - I_A(h(x)).

    Args:
        own: (b,) nats, MI of the noise with h(x_adv).
        other: (b,) nats, MI of the noise with h(x).
        wrong: (b,) bool, from `selected_over_batch`.
        right: (b,) bool, from `selected_over_batch`.
        shard: place of the samples in the global batch.

    Returns:
        0-d.
    """
    # a = -own, b = -other: 5 |cos_w(a, b)| + mean_w(a) + (8 |1 - cos_r(a, b)| - 0.1 mean_r(a)) / 2
    gain = shard.mean(own, wrong) - 0.05 * shard.mean(own, right)
    apart = cosine_of(own, other, wrong, shard).abs()
    return 5 * apart - gain + 4 * cosine_distance(own, other, right, shard)


def _log_softmax_over_batch(logits: Tensor, shard: Shard) -> Tensor:
    logits = logits.detach()
    lowest = logits.new_full((1, logits.shape[1]), -1e30)
    largest = shard.group.max(torch.cat([logits, lowest]).amax(0))
    total = shard.sum(torch.exp(logits - largest).sum(dim=0))
    return logits - (torch.log(total) + largest)
