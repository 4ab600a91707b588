"""How sure an accuracy is, and whether two models differ on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from torch import Tensor


@dataclass(frozen=True)
class Mean:
    """Mean over `num` seeds and its standard error; None for a single seed."""

    mean: float
    error: float | None
    num: int


def mean_of(values: Sequence[float]) -> Mean | None:
    """Computes the mean and its standard error, the sample deviation over sqrt(n).

    Returns:
        None without values.
    """
    if not values:
        return None
    num = len(values)
    error = stdev(values) / math.sqrt(num) if num > 1 else None
    return Mean(fmean(values), error, num)


def wilson_interval(right: int, num: int) -> tuple[float, float]:
    """95% Wilson score interval of a fraction, of which `right` of `num` samples were seen.

    Raises: ValueError where no samples were seen.
    Source: Wilson 1927; Agresti and Coull 1998, Eq. 2.
    """
    from scipy.stats import binomtest  # takes most of a second to import

    interval = binomtest(right, num).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same samples: those that only the first, or only the second gets right,
    the difference of their accuracies (first minus second), and the p-value of no difference."""

    only_first: int
    only_second: int
    difference: float
    p_value: float


def compare_paired(first: Tensor, second: Tensor) -> PairedComparison:
    """McNemar's test, exact: of the samples on which the models differ, each is as likely to be
    right if there is no difference.

    Args: first, second (N,) bool, whether each model is right on each sample, in the same order.
    Raises: ValueError where they are not as long as each other.
    Source: McNemar 1947; the exact form is the sign test on the discordant pairs.
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
