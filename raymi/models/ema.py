"""Exponential moving average (EMA) of the classifier's weights, often the more robust model."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class WeightEMA:
    """Exponential moving average over optimiser steps with a warm-up.

    After step t the decay is min(decay, (1 + t) / (10 + t)). Running BatchNorm statistics are
    averaged with the same decay. torch's AveragedModel would make the CPU wait for the GPU at each
    step.

    Source: Izmailov et al. 2018; Gowal et al. 2020, Sec. 4.3 (for adversarial training).

    Args:
        model: the classifier.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the classifier's weights after an optimiser step to the average."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
        for averaged, current in zip(_tensors(self.model), _tensors(model), strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(current, 1 - decay)
            else:
                averaged.copy_(current)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns weights, statistics and number of steps."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the content of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yields parameters and buffers; tied ones once."""
    return chain(model.parameters(), model.buffers())
