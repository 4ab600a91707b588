"""Means of step metrics, kept on the device and reduced over workers on request."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from raymi.collectives import Collectives

_NEVER = 2**62  # later than any step


class MetricMeans:
    """Sample-weighted means of metrics that follow the convention of `raymi.collectives`.

    The metrics of a step are added as one vector; a step with other names, such as a last batch too
    small for MI, has a separate vector.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._weights: Counter[tuple[str, ...]] = Counter()
        self._first_bad: dict[tuple[str, ...], Tensor] = {}

    def add(self, metrics: dict[str, Tensor], num: int, step: int = 0) -> None:
        """Adds the metrics of a global batch.

        Args:
            metrics: 0-d, detached.
            num: samples of the batch.
            step: its number.
        """
        if not metrics:
            return
        names = tuple(metrics)
        values = torch.stack([value.double() for value in metrics.values()])
        bad = torch.where(values.isfinite(), _NEVER, step)
        if names in self._sums:
            self._sums[names] += values * num
            self._first_bad[names] = torch.minimum(self._first_bad[names], bad)
        else:
            self._sums[names], self._first_bad[names] = values * num, bad
        self._weights[names] += num

    def means(self, group: Collectives) -> dict[str, float]:
        """Returns the means over all samples so far; the same on every worker."""
        if not self._sums:
            return {}
        sums = (group.sum(torch.cat(list(self._sums.values()))) / group.world_size).tolist()
        totals: dict[str, float] = {}
        weights: Counter[str] = Counter()
        for name, weight in self._named(self._weights):
            totals[name] = totals.get(name, 0.0) + sums.pop(0)
            weights[name] += weight
        return {name: total / weights[name] for name, total in totals.items()}

    def first_not_finite(self, group: Collectives) -> dict[str, int]:
        """Returns the first step at which each metric was not finite; omits finite ones.

        A collective operation, the same on every worker.
        """
        if not self._sums:
            return {}
        steps = (-group.max(-torch.cat(list(self._first_bad.values())))).tolist()
        first: dict[str, int] = {}
        for name, _ in self._named(self._weights):
            first[name] = min(first.get(name, _NEVER), steps.pop(0))
        return {name: step for name, step in first.items() if step < _NEVER}

    def clear(self) -> None:
        """Removes all metrics."""
        self._sums.clear()
        self._weights.clear()
        self._first_bad.clear()

    def state(self, group: Collectives) -> list[dict[str, Any]]:
        """Returns names, sums and weight of each vector; the same on every worker."""
        return [
            {
                "names": list(names),
                "sums": (group.sum(sums) / group.world_size).tolist(),
                "weight": self._weights[names],
            }
            for names, sums in self._sums.items()
        ]

    def load_state(self, state: list[dict[str, Any]], device: torch.device) -> None:
        """Restores the content of `state`."""
        self.clear()
        for part in state:
            names = tuple(part["names"])
            self._sums[names] = torch.tensor(part["sums"], dtype=torch.float64, device=device)
            self._first_bad[names] = torch.full((len(names),), _NEVER, device=device)
            self._weights[names] = part["weight"]

    def _named(self, values: Counter[tuple[str, ...]]) -> list[tuple[str, int]]:
        return [(name, values[names]) for names in self._sums for name in names]
