"""Data sets and networks of a user who calls raymi from Python: scikit-learn's digits."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

QUICK: dict[str, Any] = {
    "mi.weight": 0, "attack.steps": 1, "evaluation.steps": 1, "validation.steps": 1,
    "optim.epochs": 2, "tracking.enabled": False,
}  # fmt: skip
"""Settings with which an epoch takes a fraction of a second."""


def digits(num: int = 150, start: int = 0) -> TensorDataset:
    """Returns images (1, 8, 8) in [0, 1] of sixteenths, and labels."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(bunch.target)
    return TensorDataset(images[start : start + num], labels[start : start + num])


class Net(nn.Module):
    """Small network of a user."""

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * (image_size // 2) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().flatten(1))
