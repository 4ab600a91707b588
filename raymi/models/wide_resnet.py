"""Wide ResNet, the large network of the adversarial-training literature."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from raymi.models.families import WIDE_RESNET_DEPTHS
from raymi.models.resnet import conv3x3

STEM_CHANNELS = 16  # the stem is never widened


class WideBlock(nn.Module):
    """Pre-activation block: BatchNorm, ReLU and a 3x3 convolution, twice, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.convShortcut: nn.Conv2d | None = None  # named so in published weights
        if stride != 1 or in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, C_in, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = F.relu(self.bn2(self.conv1(out)), inplace=True)
        return self.conv2(out) + shortcut


class WideResNet(nn.Module):
    """WRN-depth-k: a stem of 16 channels and three stages of `channels` = k times (16, 32, 64).

    Parameters carry the names of the WideResNets on RobustBench and in TRADES. Convolutions start
    from Kaiming's normal distribution (fan out), as there.

    Args:
        num_classes: K.
        channels: channels of the three stages.
        depth: number of layers, 6n + 4 with n blocks in each stage.

    Source: Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016.
    """

    DEPTHS: ClassVar = WIDE_RESNET_DEPTHS

    def __init__(self, num_classes: int, channels: Sequence[int], depth: int) -> None:
        super().__init__()
        num_blocks = (depth - 4) // 6
        c1, c2, c3 = channels
        self.conv1 = conv3x3(3, STEM_CHANNELS)
        self.block1 = _stage(STEM_CHANNELS, c1, num_blocks, stride=1)
        self.block2 = _stage(c1, c2, num_blocks, stride=2)
        self.block3 = _stage(c2, c3, num_blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(c3)
        self.fc = nn.Linear(c3, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, 3, H, W), normalised to logits (B, K)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.relu(self.bn1(x), inplace=True)
        return self.fc(x.mean((2, 3)))


def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = WideBlock(in_channels, channels, stride)
    blocks = (first, *(WideBlock(channels, channels, 1) for _ in range(1, num_blocks)))
    # The extra level `layer` (block1.layer.0.conv1...) is that of the published state dicts.
    return nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks)))
