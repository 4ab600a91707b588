"""What two searches found, and how soon: best-so-far curves over trial-epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from studies.search.one_search import Trained


@dataclass(frozen=True)
class Found:
    """The best configuration that a search had found: robust accuracy on validation at its last
    epoch, and the trial-epochs that the search had spent by then."""

    robust: float
    spent: int


def best_so_far(trials: Iterable[Trained]) -> list[Found]:
    """Every improvement of a search, in order.

    A configuration is found when its trial comes to its last epoch; what was spent on trials that
    did not counts.
    """
    spent, curve = 0, list[Found]()
    for trial in trials:
        spent += trial.epochs
        if trial.ended == "finished" and (not curve or trial.robust[-1] > curve[-1].robust):
            curve.append(Found(trial.robust[-1], spent))
    return curve


@dataclass(frozen=True)
class Comparison:
    """A search against a reference with the same budget.

    reference, other: the best that each found; None where it found nothing.
    as_good: trial-epochs after which the other one had found something at least as good as the best
        of the reference, None where it never had; share, of the budget.
    """

    reference: Found | None
    other: Found | None
    as_good: int | None
    share: float | None


def compare(reference: Sequence[Trained], other: Sequence[Trained], budget: int) -> Comparison:
    """Compares two searches.

    Args: budget, trial-epochs that each of both had.
    """
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
    """The median share of the budget, in which never is later than any; None where it is never."""
    middle = median(math.inf if one.share is None else one.share for one in comparisons)
    return middle if math.isfinite(middle) else None


def _robust(found: Found) -> float:
    return found.robust
