"""The largest batch whose step fits into memory: tried out on a GPU, extrapolated on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch

from raymi.benchmarks.arms import AT, JOINT, STAGED
from raymi.benchmarks.memory import GIB, peak_in_process
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section

PRECISION = 1.05  # of the largest batch that was tried and fitted, and the smallest that did not
_MOST = 2**17


def measure_largest_batch(plan: Plan) -> Section:
    """The largest batch of AT, staged and joint NAMID within the memory there is, or is given."""
    gib = plan.memory or device_memory(plan.device)
    found: dict[str, int] = {}
    refused: dict[str, str] = {}
    for arm in (AT, STAGED, JOINT):
        guess = _extrapolated(plan, arm, gib)
        if plan.device.type == "cuda":
            guess = largest_that_fits(partial(_fits, plan, arm, gib, refused), max(2, guess))
        found[arm] = guess
    if plan.device.type == "cuda":
        how = f"tried out in fresh processes, to {PRECISION - 1:.0%}"
    else:
        how = "extrapolated linearly from two measured batches; no batch of this size was tried"
    return Section(
        f"Largest batch within {gib:.1f} GiB",
        ("step", "images", f"/ {AT}"),
        [[arm, _shown(b), f"{b / max(1, found[AT]):.2f}"] for arm, b in found.items()],
        {"images": found, "gib": gib, "how": how, "refused": refused},
        (how, *(f"{arm}, a larger one: {why}" for arm, why in refused.items())),
    )


def largest_that_fits(fits: Callable[[int], bool], guess: int) -> int:
    """The largest batch that fits, to `PRECISION`: steps that double in width, then bisection.

    Args: fits, whether a batch does; guess, where to begin.
    Returns: a batch that fits; 0 where not even one of 2 does.
    """
    factor = 1.1
    if fits(guess):
        low, high = guess, None
        while high is None and low < _MOST:
            trial = max(low + 1, round(low * factor))
            if fits(trial):
                low, factor = trial, factor**2
            else:
                high = trial
        if high is None:
            return low
    else:
        low, high = 0, guess
        while low == 0:
            if high <= 2:
                return 0
            trial = max(2, round(high / factor))
            if fits(trial):
                low = trial
            else:
                high, factor = trial, factor**2
    while high > max(low + 1, PRECISION * low):
        trial = (low + high) // 2
        if fits(trial):
            low = trial
        else:
            high = trial
    return low


def linear_limit(sizes: tuple[int, int], peaks: tuple[float, float], memory: float) -> int:
    """The batch at which a line through two measurements reaches `memory`.

    Args: sizes, two batches, the smaller one first; peaks, their bytes; memory, bytes.
    """
    slope = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    if slope <= 0:
        return _MOST
    return max(0, min(_MOST, int(sizes[0] + (memory - peaks[0]) / slope)))


def device_memory(device: torch.device) -> float:
    """GiB of the GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(0).total_memory / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def _shown(batch: int) -> str:
    return f"{batch} or more" if batch >= _MOST else str(batch)


def _extrapolated(plan: Plan, arm: str, gib: float) -> int:
    large = max(4, plan.config.optim.batch_size)
    sizes = (large // 2, large)
    small, large_one = (peak_in_process(plan, arm, b, gib) for b in sizes)
    if not (small["fits"] and large_one["fits"]):
        return sizes[0] // 2
    return linear_limit(sizes, (small["peak"], large_one["peak"]), gib * GIB)


def _fits(plan: Plan, arm: str, gib: float, refused: dict[str, str], batch: int) -> bool:
    """Whether a batch fits; keeps the words with which the last one was refused."""
    result = peak_in_process(plan, arm, batch, gib)
    if not result["fits"]:
        refused[arm] = result["why"]
    return result["fits"]
