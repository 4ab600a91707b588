"""The moving average of the classifier's weights: a second model, often the more robust one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


class MovingAverage:
    """Exponential moving average over optimiser steps, which warms up: the first steps count less.

    After step t the decay is min(decay, (1 + t) / (10 + t)). The running BatchNorm statistics of
    the averaged model are its own: the average, with the same decay, of the classifier's.

    Source: Izmailov et al. 2018; Gowal et al. 2020, Sec. 4.3 (for adversarial training).

    Args: model, the classifier; decay in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        def average(averaged: Tensors, current: Tensors, step: Tensor | int) -> None:
            done = int(self._averaged.n_averaged)  # on the CPU: no wait for the GPU
            warmed_up = min(decay, (1 + done) / (10 + done))
            get_ema_multi_avg_fn(warmed_up)(averaged, current, step)

        self._averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The averaged classifier."""
        return self._averaged.module

    def update(self, model: nn.Module) -> None:
        """Takes the classifier's weights after an optimiser step into the average."""
        self._averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, statistics and number of steps."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continues from `state_dict`."""
        self._averaged.load_state_dict(state)
