"""Classifier of raw pixels: normalisation, then a network.

Attacks work on pixels in [0, 1]. A normalisation outside of the model would change the meaning of
eps and get lost when weights are loaded elsewhere, so it is part of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Normalisation of the three channels by mean and standard deviation.

    Args:
        mean: three floats each, in units of [0, 1] pixels.
        std: three floats each, in units of [0, 1] pixels; every std is positive.

    Raises:
        ValueError: When they are not.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or not all(s > 0 for s in std):
            raise ValueError(
                "mean and std must be three numbers each, std positive,"
                f" got mean={tuple(mean)} and std={tuple(std)}"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, 3, H, W) in [0, 1] to (B, 3, H, W), in x's memory format."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Network with its normalisation: `net(normalize(x))`, raw images to logits.

    Args:
        net: maps normalised images (B, 3, H, W) to logits (B, K).
        mean: three floats, in units of [0, 1] pixels.
        std: three positive floats, in units of [0, 1] pixels.
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, 3, H, W) in [0, 1] to logits (B, K)."""
        return self.net(self.normalize(x))
