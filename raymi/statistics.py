"""Intervals of accuracies, means over seeds, and paired tests of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Number(NamedTuple):
    """An accuracy with its 95% Wilson interval; all fractions."""

    accuracy: float
    low: float
    high: float


def wilson_interval(right: int, num: int) -> tuple[float, float]:
    """Computes the 95% Wilson score interval of a fraction.

    Args:
        right: number of samples that count.
        num: number of samples in all.

    Returns:
        Lower and upper end, as fractions.

    Raises:
        ValueError: `num` is 0.

    Source: Wilson 1927; Agresti and Coull 1998, Eq. 2.
    """
    from scipy.stats import binomtest  # takes most of a second to import

    interval = binomtest(right, num).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def with_interval(accuracy: float, num: int) -> Number:
    """Returns an accuracy on `num` images with its interval."""
    return Number(accuracy, *wilson_interval(round(accuracy * num), num))


@dataclass(frozen=True)
class Mean:
    """A mean over `num` seeds and its standard error, None for a single seed."""

    mean: float
    error: float | None
    num: int


def mean_of(values: Sequence[float]) -> Mean | None:
    """Computes the mean and its standard error, the sample standard deviation over sqrt(n).

    Returns:
        None for no values.
    """
    if not values:
        return None
    num = len(values)
    error = stdev(values) / math.sqrt(num) if num > 1 else None
    return Mean(fmean(values), error, num)


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same samples.

    Attributes:
        only_first: number of samples that the first model alone classifies correctly.
        only_second: number of samples that the second model alone classifies correctly.
        difference: accuracy of the first model minus accuracy of the second, a fraction.
        p_value: of the hypothesis that their accuracies are equal.
    """

    only_first: int
    only_second: int
    difference: float
    p_value: float


def compare_paired(first: Tensor, second: Tensor) -> PairedComparison:
    """Computes McNemar's exact test: a sign test on the samples on which two models differ.

    Args:
        first: (N,) bool, True for samples that the first model classifies correctly.
        second: (N,) bool, the same for the second model, in the same order.

    Raises:
        ValueError: the lengths differ.

    Source: McNemar 1947.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"expected outcomes on the same samples, got {len(first)} and {len(second)} of them"
        )
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    p_value = binomtest(only_first, differing).pvalue if differing else 1.0
    difference = (only_first - only_second) / max(1, len(first))
    return PairedComparison(only_first, only_second, difference, float(p_value))
