"""Values of the authors' code on tiny inputs, and the classifier behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
NETS = ["losses_bn", "losses_nobn"]


def golden(name: str) -> dict[str, Tensor]:
    """Returns the arrays of a file in tests/golden, floats in float64."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        tensors = {key: torch.from_numpy(file[key]) for key in file}
    return {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}


class TinyNet(nn.Module):
    """Network conv 3x3 stride 2 - optional BatchNorm - ReLU - 4x4 pooling - linear, in float64."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8) if "net.bn.weight" in values else nn.Identity()
        self.fc = nn.Linear(128, 10)
        self.load_state_dict({k[4:]: v for k, v in values.items() if k.startswith("net.")})
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu()
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
