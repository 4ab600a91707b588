"""Timers for benchmarks: calls measured in turn, and seconds by label."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from timeit import Timer
from typing import Any

import torch

_LONG = 2.0  # seconds; shorter calls are repeated


def now() -> float:
    """Returns seconds on a clock, read after the GPU has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Times calls in turn, A B C A B C ..., so that a change of the machine's pace affects all.

    Each call is warmed up first; short calls are repeated for at least 0.2 seconds.

    Args:
        calls: calls by name.
        rounds: measurements of each call.

    Returns:
        Seconds of one call, a value for each round.
    """
    timers = {name: Timer(call, timer=now) for name, call in calls.items()}
    numbers = {
        name: 1 if timer.timeit(1) > _LONG else timer.autorange()[0]
        for name, timer in timers.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(numbers[name]) / numbers[name])
    return seconds


@dataclass(frozen=True)
class Ratio:
    """Ratio of two times: its median over the rounds, and the lowest and highest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Computes the ratio of two calls that were measured in the same rounds."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return Ratio(median(each), min(each), max(each))


class Stopwatch:
    """Seconds by label; time within a nested label counts for the nested label only."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._nested = [0.0]

    @contextmanager
    def measure(self, label: str) -> Iterator[None]:
        """Adds the time of a block to a label."""
        began = now()
        self._nested.append(0.0)
        try:
            yield
        finally:
            elapsed = now() - began
            self._seconds[label] += elapsed - self._nested.pop()
            self._nested[-1] += elapsed

    def watch(self, owner: object, name: str, label: str) -> None:
        """Adds the time of all later calls of `owner.name` to a label."""
        call = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.measure(label):
                return call(*args, **kwargs)

        setattr(owner, name, watched)

    def watch_calls(self, owner: object, label: str) -> None:
        """Adds the time of all later calls of an object to a label."""
        kind, measure = type(owner), self.measure

        def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
            with measure(label):
                return kind.__call__(self, *args, **kwargs)

        # Python looks for `__call__` in the class of an object
        owner.__class__ = type(kind.__name__, (kind,), {"__call__": watched})

    def take(self) -> dict[str, float]:
        """Returns the seconds by label and resets them."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken
