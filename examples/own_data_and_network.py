"""Trains and attacks a network of one's own on one's own data set.

python examples/own_data_and_network.py [WORKERS]

Here the images are scikit-learn's digits, the network is a small CNN: seconds on a CPU.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

import raymi

EPS = 0.1


class Digits(Dataset):
    """Images (1, 8, 8) in [0, 1] and labels 0..9."""

    def __init__(self, first: int, last: int) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images[first:last] / 16, dtype=torch.float32)[:, None]
        self.labels = digits.target[first:last]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


class Net(nn.Module):
    """Maps normalised images (B, 3, H, W) to logits (B, num_classes)."""

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16 * (image_size // 2) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


def main(workers: int) -> None:
    """Trains with NAMID, then attacks unseen images."""
    unseen = Digits(1200, 1300)
    result = raymi.fit(
        "quickstart",
        model=Net,
        train=Digits(0, 900),
        test=Digits(900, 1200),
        settings={"optim.epochs": 3, "attack.eps": EPS, "attack.steps": 3},
        workers=workers,
    )
    print({name: f"{value:.1%}" for name, value in result.metrics.items()}, result.path)
    attacked = raymi.robust_accuracy(result.classifier, unseen, eps=EPS, suite="quick", checks=0)
    low, high = attacked.interval
    print(f"{attacked.attack}: {attacked.accuracy:.1%} ({low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
