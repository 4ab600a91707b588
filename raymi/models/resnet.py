"""ResNet with the CIFAR stem, or the stem of ImageNet networks for larger images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from raymi.models.activations import ACTIVATIONS
from raymi.models.families import RESNET_DEPTHS


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Returns a 3x3 convolution without bias, padded to keep the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def first_convolution(channels: int, imagenet_stem: bool) -> nn.Conv2d:
    """Returns the convolution of the images: 7x7 of stride 2, or 3x3 of stride 1."""
    if imagenet_stem:
        return nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
    return conv3x3(3, channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected by a 1x1 convolution where shapes differ."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, C_in, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        out = self.activation(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return self.activation(out + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """ResNet of basic blocks in four stages, then global average pooling and a linear layer.

    With channels (64, 128, 256, 512) and depth 18 this is the ResNet-18 of adversarial training;
    parameters carry the names of the CIFAR ResNets on RobustBench.

    Args:
        num_classes: K.
        channels: channels of the four stages.
        depth: number of layers, a key of `DEPTHS`.
        activation: "relu" or "silu".
        imagenet_stem: begin with a 7x7 convolution of stride 2 and a max-pool, which leave a
            quarter of height and width, instead of a 3x3 convolution of stride 1.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016.
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
        self.bn1 = nn.BatchNorm2d(c1)
        self.layer1 = _stage(c1, c1, blocks1, 1, activation)
        self.layer2 = _stage(c1, c2, blocks2, 2, activation)
        self.layer3 = _stage(c2, c3, blocks3, 2, activation)
        self.layer4 = _stage(c3, c4, blocks4, 2, activation)
        self.linear = nn.Linear(c4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, 3, H, W), normalised to logits (B, K)."""
        x = self.pool(self.activation(self.bn1(self.conv1(x)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


def _stage(
    in_channels: int, channels: int, num_blocks: int, stride: int, activation: str
) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, activation)
    rest = (BasicBlock(channels, channels, 1, activation) for _ in range(1, num_blocks))
    return nn.Sequential(first, *rest)
