"""Means of step metrics, kept on the device and reduced over workers only when somebody asks."""

from __future__ import annotations

import torch
from torch import Tensor

from raymi.collectives import Collectives


class MetricMeans:
    """Sample-weighted means of metrics that follow the convention of `raymi.collectives`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor], num: int) -> None:
        """Adds the metrics (0-d, detached) of a global batch of `num` samples."""
        for name, value in metrics.items():
            weighted = value.double() * num
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
            self._weights[name] = self._weights.get(name, 0) + num

    def means(self, group: Collectives) -> dict[str, float]:
        """The means over all samples added so far; the same on every worker. Empty if none were."""
        if not self._sums:
            return {}
        sums = group.sum(torch.stack(list(self._sums.values()))) / group.world_size
        return {
            name: total / self._weights[name]
            for name, total in zip(self._sums, sums.tolist(), strict=True)
        }

    def clear(self) -> None:
        """Forgets everything."""
        self._sums.clear()
        self._weights.clear()

    def state(self, group: Collectives) -> dict[str, list[float]]:
        """Means and weights, for a checkpoint; the same on every worker."""
        return {name: [mean, self._weights[name]] for name, mean in self.means(group).items()}

    def load_state(self, state: dict[str, list[float]], device: torch.device) -> None:
        """Continues from `state`."""
        self.clear()
        for name, (mean, weight) in state.items():
            self._sums[name] = torch.tensor(mean * weight, dtype=torch.float64, device=device)
            self._weights[name] = int(weight)
