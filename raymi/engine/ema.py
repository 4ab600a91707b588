"""The moving average of the classifier's weights: a second model, often the more robust one."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class WeightEMA:
    """Exponential moving average over optimiser steps, which warms up: the first steps count less.

    After step t the decay is min(decay, (1 + t) / (10 + t)). The running BatchNorm statistics of
    the averaged model are its own: the average, with the same decay, of the classifier's.
    (torch's AveragedModel does the same, and makes the CPU wait for the GPU at each step.)

    Source: Izmailov et al. 2018; Gowal et al. 2020, Sec. 4.3 (for adversarial training).

    Args: model, the classifier; decay in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the classifier's weights after an optimiser step into the average."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
        for averaged, current in zip(_tensors(self.model), _tensors(model), strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(current, 1 - decay)
            else:
                averaged.copy_(current)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Weights, statistics and number of steps."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers; tied ones once."""
    return chain(model.parameters(), model.buffers())
