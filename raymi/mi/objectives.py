"""Objectives of NAMID over per-sample MI estimates: selection, estimator and classifier losses.

Every function takes the worker's own b samples and returns a loss whose *mean over workers* is the
loss of the global batch (see `raymi.collectives`).

An estimate by an estimator fitted on h(x) is still a lower bound on I(x; h(x_adv)), so raising
natural MI is sound. *Lowering* adversarial MI lowers a lower bound: it is meaningful relative to
that estimator only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from raymi.collectives import Shard


class PairMI(NamedTuple):
    """MI of both outputs, natural or adversarial.

    Args:
        of_adversarial: (b,) nats, I(u; h(x_adv)).
        of_natural: (b,) nats, I(u; h(x)); None without cosine terms.
    """

    of_adversarial: Tensor
    of_natural: Tensor | None = None


def selected(logits: Tensor, logits_adv: Tensor, y: Tensor) -> Tensor:
    """Selects samples classified right as natural and wrong as adversarial images (Eq. 6).

    Args:
        logits: (b, K).
        logits_adv: (b, K).
        y: (b,).

    Returns:
        (b,) bool.
    """
    return (logits.argmax(dim=1) == y) & (logits_adv.argmax(dim=1) != y)


def clamp_mean(mean: Tensor, low: float, high: float, shard: Shard) -> Tensor:
    """Clamps a batch mean, in value and gradient, to [low, high] nats.

    Args:
        mean: 0-d, as `Shard.mean` returns it; the mean over workers is clamped.
        low: lower limit, in nats.
        high: upper limit, in nats.
        shard: place of the samples in the global batch.
    """
    if low == -math.inf and high == math.inf:
        return mean
    value = shard.sum(mean.detach()) / shard.world_size
    inside = (value >= low) & (value <= high)
    return torch.where(inside, mean, value.clamp(low, high))


def cosine_distance(a: Tensor, b: Tensor, mask: Tensor, shard: Shard) -> Tensor:
    """Computes L_cos of Eq. 8, |1 - cos(a, b)|, over the selected samples of the global batch.

    Args:
        a: (b,).
        b: (b,).
        mask: (b,) bool.
        shard: place of the samples in the global batch.

    Returns:
        0-d, the same on every worker; 0 if nothing is selected or a vector is zero.
    """
    return (1 - cosine_of(a, b, mask, shard, undefined=1.0)).abs()


def cosine_of(
    a: Tensor, b: Tensor, mask: Tensor, shard: Shard, *, undefined: float = 0.0
) -> Tensor:
    """Computes the cosine of two vectors over the selected samples of the global batch.

    Args:
        a: (b,).
        b: (b,).
        mask: (b,) bool.
        shard: place of the samples in the global batch.
        undefined: value if nothing is selected or a vector is zero, with gradient zero.

    Returns:
        0-d, the same on every worker.
    """
    a, b = torch.where(mask, a, 0), torch.where(mask, b, 0)
    dot, aa, bb = shard.sum(torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()]))
    defined = (aa > 0) & (bb > 0)
    norms = torch.sqrt(torch.where(defined, aa, 1)) * torch.sqrt(torch.where(defined, bb, 1))
    return torch.where(defined, dot / norms, undefined + 0 * dot)


def estimator_loss(
    matching: Tensor,
    other: Tensor | None,
    mask: Tensor | None,
    shard: Shard,
    *,
    clip: bool = True,
) -> Tensor:
    """Computes the loss of one estimator: minus its matching MI, plus the other (contrast).

    Natural estimator: `matching` = I_N(h(x)), `other` = I_N(h(x_adv)); adversarial: vice versa.
    mim (Eq. 4): other = mask = None. contrast (Eq. 5): over the selected samples. Measured warning:
    unclipped, with Donsker-Varadhan, the contrast is unbounded below and ran to -80 nats before
    training collapsed.

    Args:
        matching: (b,) nats.
        other: (b,) nats.
        mask: (b,) bool.
        shard: place of the samples in the global batch.
        clip: clamp the mean of the other MI at 0 nats.

    Returns:
        0-d loss in nats.
    """
    # Eq. 4: -mean I(own)        Eq. 5: -mean_S [I(own) - max(I(other), 0)]
    loss = -shard.mean(matching, mask)
    if other is not None:
        other_mean = shard.mean(other, mask)
        loss = loss + (clamp_mean(other_mean, 0.0, math.inf, shard) if clip else other_mean)
    return loss


def classifier_mi_loss(
    natural: PairMI | None,
    adversarial: PairMI | None,
    mask: Tensor | None,
    shard: Shard,
    *,
    difference: float,
    cosine: float,
    natural_range: tuple[float, float] = (-math.inf, math.inf),
    adversarial_range: tuple[float, float] = (-math.inf, math.inf),
) -> Tensor:
    """Computes L_mi of Eq. 8, with optional terms.

    Args:
        natural: natural MI of both outputs; None: without its terms (ablation ii).
        adversarial: adversarial MI of both outputs; None: without its terms (ablation i).
        mask: (b,) bool, selected samples (Eq. 6); None: all.
        shard: place of the samples in the global batch.
        difference: weight of mean[I_A(h(x_adv)) - I_N(h(x_adv))], lambda in the paper.
        cosine: weight of the two cosine terms, 1 in the paper.
        natural_range: limits of the clamped batch mean of natural MI, in nats.
        adversarial_range: limits of the clamped batch mean of adversarial MI, in nats.

    Returns:
        0-d loss in nats (the cosine terms have no unit).
    """
    # cos * [L_cos(I_N) + L_cos(I_A)] + lambda * [mean I_A(h(x_adv)) - mean I_N(h(x_adv))]
    terms: list[Tensor] = []
    for sign, kind, bounds in ((-1, natural, natural_range), (1, adversarial, adversarial_range)):
        if kind is None:
            continue
        mean = shard.mean(kind.of_adversarial, mask)
        terms.append(sign * difference * clamp_mean(mean, *bounds, shard))
        if cosine > 0 and kind.of_natural is not None:
            everything = torch.ones_like(kind.of_adversarial, dtype=torch.bool)
            over = everything if mask is None else mask
            distance = cosine_distance(kind.of_adversarial, kind.of_natural, over, shard)
            terms.append(cosine * distance)
    return torch.stack(terms).sum()
