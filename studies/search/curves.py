"""Best-so-far curves of two searches over trial-epochs, and their comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from studies.search.one_search import Trained


@dataclass(frozen=True)
class Found:
    """Best configuration of a search so far.

    Attributes:
        robust: its robust accuracy on validation at its last epoch.
        spent: trial-epochs of the search until then.
    """

    robust: float
    spent: int


def best_so_far(trials: Iterable[Trained]) -> list[Found]:
    """Returns every improvement of a search, in order.

    A configuration is found when its trial reaches its last epoch; epochs of other trials count as
    spent.
    """
    spent, curve = 0, list[Found]()
    for trial in trials:
        spent += trial.epochs
        if trial.ended == "finished" and (not curve or trial.robust[-1] > curve[-1].robust):
            curve.append(Found(trial.robust[-1], spent))
    return curve


@dataclass(frozen=True)
class Comparison:
    """Search against a reference with the same budget.

    Attributes:
        reference: best of the reference; None: it found nothing.
        other: best of the other search; None: it found nothing.
        as_good: trial-epochs after which the other search had found a configuration at least as
            good as the best of the reference; None: never.
        share: `as_good` as a fraction of the budget.
    """

    reference: Found | None
    other: Found | None
    as_good: int | None
    share: float | None


def compare(reference: Sequence[Trained], other: Sequence[Trained], budget: int) -> Comparison:
    """Compares two searches of `budget` trial-epochs each."""
    target, curve = max(best_so_far(reference), default=None, key=_robust), best_so_far(other)
    least = -math.inf if target is None else target.robust
    as_good = next((found.spent for found in curve if found.robust >= least), None)
    return Comparison(
        target,
        max(curve, default=None, key=_robust),
        as_good,
        None if as_good is None else as_good / budget,
    )


def median_share(comparisons: Iterable[Comparison]) -> float | None:
    """Returns the median share of the budget, never being later than any; None: it is never."""
    middle = median(math.inf if one.share is None else one.share for one in comparisons)
    return middle if math.isfinite(middle) else None


def _robust(found: Found) -> float:
    return found.robust
