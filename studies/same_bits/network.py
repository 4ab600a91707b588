"""A network with dropout, whose draws depend on the order of a step's forwards."""

from __future__ import annotations

from torch import nn


def dropout_net(num_classes: int, image_size: int) -> nn.Module:
    """Builds a small convolutional network with BatchNorm and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(8 * (image_size // 2) ** 2, num_classes),
    )
