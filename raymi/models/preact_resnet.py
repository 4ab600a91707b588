"""Pre-activation ResNet with the CIFAR stem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from raymi.models.families import RESNET_DEPTHS
from raymi.models.resnet import conv3x3


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions; the projection follows the first."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, C_in, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = F.relu(self.bn2(self.conv1(out)), inplace=True)
        return self.conv2(out) + shortcut


class PreActResNet(nn.Module):
    """Pre-activation ResNet of four stages with BatchNorm and ReLU before the pooling.

    With channels (64, 128, 256, 512) and depth 18 this is the PreActResNet-18 of Rice et al. 2020
    (11,172,170 parameters for 10 classes); RobustBench calls it `PreActBlockV2`, `bn_before_fc`.

    Args:
        num_classes: K.
        channels: channels of the four stages.
        depth: number of layers, a key of `DEPTHS`.

    Source: He et al., "Identity mappings in deep residual networks", ECCV 2016.
    """

    DEPTHS: ClassVar = RESNET_DEPTHS

    def __init__(self, num_classes: int, channels: Sequence[int], depth: int) -> None:
        super().__init__()
        blocks1, blocks2, blocks3, blocks4 = self.DEPTHS[depth]
        c1, c2, c3, c4 = channels
        self.conv1 = conv3x3(3, c1)
        self.layer1 = _stage(c1, c1, blocks1, stride=1)
        self.layer2 = _stage(c1, c2, blocks2, stride=2)
        self.layer3 = _stage(c2, c3, blocks3, stride=2)
        self.layer4 = _stage(c3, c4, blocks4, stride=2)
        self.bn = nn.BatchNorm2d(c4)
        self.linear = nn.Linear(c4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, 3, H, W), normalised to logits (B, K)."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = F.relu(self.bn(x), inplace=True)
        return self.linear(x.mean((2, 3)))


def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = PreActBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(PreActBlock(channels, channels, 1) for _ in range(1, num_blocks)))
