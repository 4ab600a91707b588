"""Pre-activation ResNet with the CIFAR stem, or the ImageNet stem for larger images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from raymi.models.activations import ACTIVATIONS
from raymi.models.families import RESNET_DEPTHS
from raymi.models.resnet import conv3x3, first_convolution


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions; the projection follows the first."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
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
        out = self.activation(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.activation(self.bn2(self.conv1(out)), inplace=True)
        return self.conv2(out) + shortcut


class PreActResNet(nn.Module):
    """Pre-activation ResNet of four stages with BatchNorm and ReLU before the pooling.

    With channels (64, 128, 256, 512) and depth 18 this is the PreActResNet-18 of Rice et al. 2020
    (11,172,170 parameters for 10 classes); RobustBench calls it `PreActBlockV2`, `bn_before_fc`.

    Args:
        num_classes: K.
        channels: channels of the four stages.
        depth: number of layers, a key of `DEPTHS`.
        activation: "relu" or "silu".
        imagenet_stem: as of `ResNet`.

    Source: He et al., "Identity mappings in deep residual networks", ECCV 2016.
    """

    DEPTHS: ClassVar = RESNET_DEPTHS

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int],
        depth: int,
        activation: str = "relu",
        imagenet_stem: bool = False,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        blocks1, blocks2, blocks3, blocks4 = self.DEPTHS[depth]
        c1, c2, c3, c4 = channels
        self.conv1 = first_convolution(c1, imagenet_stem)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet_stem else nn.Identity()
        self.layer1 = _stage(c1, c1, blocks1, 1, activation)
        self.layer2 = _stage(c1, c2, blocks2, 2, activation)
        self.layer3 = _stage(c2, c3, blocks3, 2, activation)
        self.layer4 = _stage(c3, c4, blocks4, 2, activation)
        self.bn = nn.BatchNorm2d(c4)
        self.linear = nn.Linear(c4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, 3, H, W), normalised to logits (B, K)."""
        x = self.layer1(self.pool(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(x)))
        x = self.activation(self.bn(x), inplace=True)
        return self.linear(x.mean((2, 3)))


def _stage(
    in_channels: int, channels: int, num_blocks: int, stride: int, activation: str
) -> nn.Sequential:
    first = PreActBlock(in_channels, channels, stride, activation)
    rest = (PreActBlock(channels, channels, 1, activation) for _ in range(1, num_blocks))
    return nn.Sequential(first, *rest)
