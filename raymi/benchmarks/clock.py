"""Time that is comparable: device work is waited for, and what is compared takes turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

_LONG = 2.0  # seconds; a call that takes longer is warmed up once


class Clock:
    """Seconds on the host, after the device has done what it was given.

    Args: device, whose queue is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        """Seconds since some moment."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def time(self, call: Callable[[], object], times: int = 1) -> float:
        """Seconds of one call, the mean of so many in a row."""
        began = self.now()
        for _ in range(times):
            call()
        return (self.now() - began) / times


def interleaved(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Clock,
    at_least: float = 0.2,
) -> dict[str, list[float]]:
    """Times all arms in turn, A B C A B C..., so that a machine that changes its pace changes it
    for all.

    Args:
        arms: calls by name; each is warmed up before.
        at_least: seconds that a measurement lasts; short calls are repeated in a row.
    Returns: seconds of one call, one value for each round.
    """
    repeats: dict[str, int] = {}
    for name, call in arms.items():
        seconds = clock.time(call)
        if seconds < _LONG:
            seconds = clock.time(call)
        repeats[name] = min(1000, math.ceil(at_least / seconds)) if seconds > 0 else 1
        repeats[name] = max(1, repeats[name])
    seconds_of: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, call in arms.items():
            seconds_of[name].append(clock.time(call, repeats[name]))
    return seconds_of


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times, taken round by round: its median, and the lowest and highest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """The ratio of two arms that were measured in the same rounds."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return Ratio(median(each), min(each), max(each))


class Stopwatch:
    """Adds up seconds by label; what is measured inside of another label counts for its own only.

    Args: clock, of the device.
    """

    def __init__(self, clock: Clock) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def measure(self, label: str) -> Iterator[None]:
        """Everything inside counts for the label."""
        self._turn()
        self._open.append(label)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def watch(self, owner: object, name: str, label: str) -> None:
        """From now on calls of `owner.name` count for the label."""
        call = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.measure(label):
                return call(*args, **kwargs)

        setattr(owner, name, watched)

    def take(self) -> dict[str, float]:
        """The seconds so far, which begin anew."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _turn(self) -> None:
        now = self._clock.now()
        if self._open:
            label = self._open[-1]
            self.seconds[label] = self.seconds.get(label, 0.0) + now - self._since
        self._since = now
