"""VGG with BatchNorm for small images, and a small convolutional network of the same shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from raymi.models.families import SMALL_CNN_DEPTHS, VGG_DEPTHS


class Halve(nn.Module):
    """2x2 max-pooling; an image of height or width 1 is returned unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, C, H, W) to (B, C, H // 2, W // 2), or x where H or W is 1."""
        return F.max_pool2d(x, 2) if min(x.shape[-2:]) > 1 else x


class VGG(nn.Module):
    """Stages of 3x3 convolutions and a max-pool, then global average pooling and a linear layer.

    With channels (64, 128, 256, 512, 512) and depth 19 this is the VGG-19 of CIFAR: `features.0`
    and `classifier` are named and numbered as in the CIFAR VGG's that are in wide use.

    Args:
        num_classes: K.
        channels: channels of the stages.
        depth: a key of `DEPTHS`, whose values are the convolutions of each stage.
        activation: "relu" or "silu".

    Source: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
        recognition", ICLR 2015; with BatchNorm and without the hidden linear layers, as is usual on
        CIFAR (so VGG-19 has 17 layers with weights).
    """

    DEPTHS: ClassVar[Mapping[int, Sequence[int]]] = VGG_DEPTHS

    def __init__(
        self, num_classes: int, channels: Sequence[int], depth: int, activation: str = "relu"
    ) -> None:
        super().__init__()
        activate = {"relu": nn.ReLU, "silu": nn.SiLU}[activation]
        layers: list[nn.Module] = []
        in_channels = 3
        for num_convs, out_channels in zip(self.DEPTHS[depth], channels, strict=True):
            for _ in range(num_convs):
                layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1))
                layers.append(nn.BatchNorm2d(out_channels))
                layers.append(activate(inplace=True))
                in_channels = out_channels
            layers.append(Halve())
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, 3, H, W), normalised to logits (B, K)."""
        return self.classifier(self.features(x).mean((2, 3)))


class SmallCNN(VGG):
    """Three stages of one, two or three convolutions: for digits on a laptop's CPU.

    Args:
        As in `VGG`; depth counts the convolutions and the linear layer.
    """

    DEPTHS: ClassVar[Mapping[int, Sequence[int]]] = SMALL_CNN_DEPTHS
