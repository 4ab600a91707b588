"""Wide ResNet, the large network of the adversarial-training literature."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from raymi.models.activations import ACTIVATIONS
from raymi.models.families import WIDE_RESNET_DEPTHS
from raymi.models.resnet import conv3x3

STEM_CHANNELS = 16  # the stem is never widened


class WideBlock(nn.Module):
    """Pre-activation block: BatchNorm, ReLU and a 3x3 convolution, twice, and a shortcut."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.convShortcut: nn.Conv2d | None = None  # named so in published weights
        if stride != 1 or in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, C_in, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        out = self.activation(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = self.activation(self.bn2(self.conv1(out)), inplace=True)
        return self.conv2(out) + shortcut


class WideResNet(nn.Module):
    """WRN-depth-k: a stem of 16 channels and three stages of `channels` = k times (16, 32, 64).

    Parameters carry the names of the WideResNets on RobustBench and in TRADES. Convolutions start
    from Kaiming's normal distribution (fan out), as there.

    Args:
        num_classes: K.
        channels: channels of the three stages.
        depth: number of layers, 6n + 4 with n blocks in each stage.
        activation: "relu" or "silu".

    Source: Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016.
    """

    DEPTHS: ClassVar = WIDE_RESNET_DEPTHS

    def __init__(
        self, num_classes: int, channels: Sequence[int], depth: int, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        num_blocks = (depth - 4) // 6
        c1, c2, c3 = channels
        self.conv1 = conv3x3(3, STEM_CHANNELS)
        self.block1 = _stage(STEM_CHANNELS, c1, num_blocks, 1, activation)
        self.block2 = _stage(c1, c2, num_blocks, 2, activation)
        self.block3 = _stage(c2, c3, num_blocks, 2, activation)
        self.bn1 = nn.BatchNorm2d(c3)
        self.fc = nn.Linear(c3, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, 3, H, W), normalised to logits (B, K)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.activation(self.bn1(x), inplace=True)
        return self.fc(x.mean((2, 3)))


def _stage(
    in_channels: int, channels: int, num_blocks: int, stride: int, activation: str
) -> nn.Sequential:
    first = WideBlock(in_channels, channels, stride, activation)
    rest = (WideBlock(channels, channels, 1, activation) for _ in range(1, num_blocks))
    # The extra level `layer` (block1.layer.0.conv1...) is that of the published state dicts.
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))
