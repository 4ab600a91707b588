"""CutMix and MixUp: each image of a global batch is mixed with another one of it.

The partner is a function of the global batch, the share of (seed, epoch, sample), so that mixtures
do not depend on the number of workers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raymi.counter_rng import integers, random_key, uniform


def mix_images(
    kind: str, x: Tensor, other: Tensor, *, seed: int, epoch: int, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Mixes images with others; the share of the other one is uniform in [0, 1).

    Args:
        kind: "mixup", a weighted mean, or "cutmix", a square of the other image at a random place,
            cut off at the border.
        x: (B, 3, H, W).
        other: (B, 3, H, W).
        seed: seed of the random keys.
        epoch: number of the epoch, part of the keys.
        index: (B,) int64, positions of the samples of `x` in their data set.

    Returns:
        (B, 3, H, W) images; (B,) shares of the other image.

    Source: Zhang et al. 2018 (mixup, Eq. 1) and Yun et al. 2019 (CutMix, Eq. 1 and 2), alpha = 1.
    """
    index = index.to(x.device)
    share = uniform(random_key(seed, "mix", epoch), index)
    if kind == "mixup":
        weight = share[:, None, None, None]
        return (1 - weight) * x + weight * other, share
    inside = _squares(share, random_key(seed, "square", epoch), index, *x.shape[2:])
    return torch.where(inside[:, None], other, x), inside.float().mean((1, 2))


def mixed_targets(y: Tensor, other: Tensor, share: Tensor, num_classes: int) -> Tensor:
    """Returns (B, K) probabilities of labels (B,), mixed as their images are."""
    share = share[:, None].to(torch.get_default_dtype())
    one, two = (F.one_hot(labels, num_classes) for labels in (y, other))
    return (1 - share) * one + share * two


def labels_of(target: Tensor) -> Tensor:
    """Returns the most probable class, (b,), of labels (b,) or of probabilities (b, K)."""
    return target if target.dim() == 1 else target.argmax(dim=1)


def _squares(share: Tensor, key: int, index: Tensor, height: int, width: int) -> Tensor:
    """Returns (B, H, W) bool: rectangles of the image's shape, of `share` of its area."""
    sides = []
    for axis, size in enumerate((height, width)):
        centre = integers(key, index, size, (2,))[:, axis, None]
        half = (share.sqrt() * size / 2).long()[:, None]
        at = torch.arange(size, device=share.device)
        sides.append((at >= centre - half) & (at < centre + half))
    return sides[0][:, :, None] & sides[1][:, None, :]
