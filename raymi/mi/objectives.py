"""The objectives of NAMID over per-sample MI estimates: selection, critics' and classifier's
losses.

Every function takes the worker's own b samples and returns a loss whose *mean over workers* is the
loss of the global batch (see `raymi.collectives`).

An estimate by a critic fitted on h(x) is still a lower bound on I(x; h(x_adv)), so raising natural
MI is sound. *Lowering* adversarial MI lowers a lower bound: it says something relative to that
critic only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from raymi.collectives import Collectives


class PairMI(NamedTuple):
    """One kind of MI of both outputs, in nats: (b,) each.

    of_adversarial is I(u; h(x_adv)); of_natural is I(u; h(x)), None where no cosine term asks for
    it.
    """

    of_adversarial: Tensor
    of_natural: Tensor | None = None


def selected(logits: Tensor, logits_adv: Tensor, y: Tensor) -> Tensor:
    """Eq. 6: samples that are classified right as natural and wrong as adversarial images.

    Args: logits, logits_adv (b, K); y (b,).
    Returns: (b,) bool.
    """
    return (logits.argmax(dim=1) == y) & (logits_adv.argmax(dim=1) != y)


def global_mean(values: Tensor, mask: Tensor | None, num: int, group: Collectives) -> Tensor:
    """Mean over the samples of all workers, where mask is true; 0 where it never is.

    Args: values (b,); mask (b,) bool, None: all; num, samples in the global batch.
    Returns: 0-d; its mean over workers is the mean, its gradient is exact after DDP's averaging.
    """
    if mask is None:
        return group.world_size * values.sum() / num
    count = group.sum(mask.sum().to(values.dtype))
    masked = torch.where(mask, values, torch.zeros_like(values))
    return group.world_size * masked.sum() / count.clamp(min=1)


def clamp_mean(mean: Tensor, low: float, high: float, group: Collectives) -> Tensor:
    """A batch mean that stops counting, in value and gradient, outside of [low, high] nats.

    Args: mean, 0-d, as `global_mean` returns it; what is tested is the mean over the workers.
    """
    if low == -math.inf and high == math.inf:
        return mean
    value = group.sum(mean.detach()) / group.world_size
    inside = (value >= low) & (value <= high)
    return torch.where(inside, mean, value.clamp(low, high))


def cosine_distance(a: Tensor, b: Tensor, mask: Tensor, group: Collectives) -> Tensor:
    """L_cos of Eq. 8: |1 - cos(a, b)|, one cosine of two vectors over the selected global batch.

    Args: a, b (b,); mask (b,) bool.
    Returns: 0-d, the same on every worker; 0 where nothing is selected or a vector vanishes.
    """
    return (1 - cosine_of(a, b, mask, group, undefined=1.0)).abs()


def cosine_of(
    a: Tensor, b: Tensor, mask: Tensor, group: Collectives, *, undefined: float = 0.0
) -> Tensor:
    """Cosine of two vectors over the selected samples of the global batch.

    Args: a, b (b,); mask (b,) bool; undefined, the value where nothing is selected or a vector
        vanishes; its gradient is zero there.
    Returns: 0-d, the same on every worker.
    """
    a, b = torch.where(mask, a, 0), torch.where(mask, b, 0)
    dot, aa, bb = group.sum(torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()]))
    defined = (aa > 0) & (bb > 0)
    norms = torch.sqrt(torch.where(defined, aa, 1)) * torch.sqrt(torch.where(defined, bb, 1))
    return torch.where(defined, dot / norms, undefined + 0 * dot)


def estimator_loss(
    matching: Tensor,
    other: Tensor | None,
    mask: Tensor | None,
    num: int,
    group: Collectives,
    *,
    clip: bool = True,
) -> Tensor:
    """Loss of one critic: minus the MI of its own output, plus that of the other (contrast).

    Natural critic: `matching` = I_N(h(x)), `other` = I_N(h(x_adv)); adversarial critic: the twin.
    mim (Eq. 4): other = mask = None. contrast (Eq. 5): over the selected samples; with `clip` the
    other MI stops counting below 0 nats. Measured warning: unclipped, with Donsker-Varadhan, the
    contrast is unbounded below and ran to -80 nats before training collapsed.

    Args: matching, other (b,) nats; mask (b,) bool; num, samples in the global batch.
    Returns: 0-d loss in nats.
    """
    # Eq. 4: -mean I(own)        Eq. 5: -mean_S [I(own) - max(I(other), 0)]
    loss = -global_mean(matching, mask, num, group)
    if other is not None:
        other_mean = global_mean(other, mask, num, group)
        loss = loss + (clamp_mean(other_mean, 0.0, math.inf, group) if clip else other_mean)
    return loss


def classifier_mi_loss(
    natural: PairMI | None,
    adversarial: PairMI | None,
    mask: Tensor | None,
    num: int,
    group: Collectives,
    *,
    difference: float,
    cosine: float,
    natural_range: tuple[float, float] = (-math.inf, math.inf),
    adversarial_range: tuple[float, float] = (-math.inf, math.inf),
) -> Tensor:
    """L_mi of Eq. 8, with every term switchable.

    Args:
        natural, adversarial: the two kinds of MI of both outputs; None leaves its terms out (the
            paper's ablations ii and i).
        mask: (b,) bool, the samples that count (Eq. 6); None: all.
        num: samples in the global batch.
        difference: weight of mean[I_A(h(x_adv)) - I_N(h(x_adv))], lambda in the paper.
        cosine: weight of the two cosine terms, 1 in the paper.
        natural_range, adversarial_range: nats outside of which a batch mean stops counting.
    Returns: 0-d loss in nats (the cosine terms have no unit).
    """
    # cos * [L_cos(I_N) + L_cos(I_A)] + lambda * [mean I_A(h(x_adv)) - mean I_N(h(x_adv))]
    terms: list[Tensor] = []
    for sign, kind, bounds in ((-1, natural, natural_range), (1, adversarial, adversarial_range)):
        if kind is None:
            continue
        mean = global_mean(kind.of_adversarial, mask, num, group)
        terms.append(sign * difference * clamp_mean(mean, *bounds, group))
        if cosine > 0 and kind.of_natural is not None:
            everything = torch.ones_like(kind.of_adversarial, dtype=torch.bool)
            over = everything if mask is None else mask
            distance = cosine_distance(kind.of_adversarial, kind.of_natural, over, group)
            terms.append(cosine * distance)
    return torch.stack(terms).sum()
