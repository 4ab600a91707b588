"""Ranking of classifiers by robust accuracy, with the Pareto front and significant differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from raymi.errors import UserError
from raymi.selection.candidate import CLEAN, Candidate, Protocol
from raymi.selection.constraints import Constraint
from raymi.selection.front import on_front
from raymi.statistics import Number, PairedComparison

SIGNIFICANCE = 0.05
"""p-value of McNemar's test above which a difference is within noise."""

Pairing = Callable[[Candidate, Candidate], PairedComparison | None]
"""Compares two models sample by sample; None if their outcomes are not available."""


class Difference(NamedTuple):
    """Difference of accuracy between a model and the chosen one.

    Attributes:
        value: difference of fractions.
        within_noise: whether the difference is not significant.
        p_value: of McNemar's test on the same samples; None: only intervals were compared.
    """

    value: float
    within_noise: bool
    p_value: float | None


@dataclass(frozen=True)
class RankedCandidate:
    """Candidate with its result in a ranking.

    Attributes:
        candidate: the model.
        excluded: why it may not be chosen; empty if it may.
        on_front: whether it is Pareto-optimal in clean and robust accuracy among eligible ones.
        difference: to the chosen model; None for that model, and if none is chosen.
    """

    candidate: Candidate
    excluded: str
    on_front: bool
    difference: Difference | None


@dataclass(frozen=True)
class Ranking:
    """Models by their accuracy under one attack, best first, excluded ones last."""

    protocol: Protocol
    metric: str
    constraints: tuple[Constraint, ...]
    ranked: tuple[RankedCandidate, ...]

    @property
    def eligible(self) -> tuple[RankedCandidate, ...]:
        """Models that may be chosen."""
        return tuple(one for one in self.ranked if not one.excluded)

    @property
    def chosen(self) -> Candidate:
        """Best eligible model.

        Raises:
            UserError: where no model is eligible, with the best values.
        """
        if self.eligible:
            return self.eligible[0].candidate
        required = ", ".join(map(str, self.constraints)) or "no sign of false robustness"
        names = dict.fromkeys([CLEAN, self.metric, *(one.name for one in self.constraints)])
        best = ", ".join(self._best(name) for name in names)
        doubtful = any(one.candidate.doubts for one in self.ranked)
        remedy = "; doubtful=allow accepts models with such signs" if doubtful else ""
        raise UserError(
            f"none of {len(self.ranked)} models satisfies {required}; the best values are {best}: "
            f"relax a constraint, or train and evaluate others{remedy}"
        )

    def _best(self, name: str) -> str:
        """Returns the highest accuracy of a name, and its model."""
        measured = [one.candidate for one in self.ranked if name in one.candidate.numbers]
        if not measured:
            return f"{name}: not measured"
        value, model = max((one.numbers[name].accuracy, one.name) for one in measured)
        return f"{name} {value:.4f} ({model})"

    def number(self, candidate: Candidate) -> Number:
        """Returns the accuracy by which a candidate is ranked."""
        return candidate.numbers[self.metric]

    def as_json(self) -> dict[str, Any]:
        """Returns the ranking in JSON types; accuracies are fractions."""
        return {
            "question": self.protocol._asdict(),
            "metric": self.metric,
            "constraints": list(map(str, self.constraints)),
            "chosen": self.eligible[0].candidate.model_id if self.eligible else None,
            "models": [
                {
                    "name": one.candidate.name,
                    "model_id": one.candidate.model_id,
                    "run_id": one.candidate.run_id,
                    "numbers": {k: v._asdict() for k, v in one.candidate.numbers.items()},
                    "doubts": one.candidate.doubts,
                    "excluded": one.excluded,
                    "on_front": one.on_front,
                    "difference": one.difference._asdict() if one.difference else None,
                }
                for one in self.ranked
            ],
        }


def rank(
    candidates: Sequence[Candidate],
    metric: str,
    constraints: Sequence[Constraint] = (),
    *,
    allow_doubtful: bool = False,
    paired: Pairing = lambda one, other: None,
) -> Ranking:
    """Ranks models by an attack, ties by clean accuracy, then by name.

    Args:
        candidates: of one protocol, all measured under the attack.
        metric: name of the attack.
        constraints: which the chosen model satisfies.
        allow_doubtful: whether the chosen model may show signs of false robustness.
        paired: comparison of two models sample by sample.
    """
    (protocol,) = {one.protocol for one in candidates}
    order = sorted(
        ((_exclusion(one, constraints, allow_doubtful), one) for one in candidates),
        key=lambda pair: (bool(pair[0]), *_sort_key(pair[1], metric)),
    )
    eligible = [one for reason, one in order if not reason]
    points = [[one.numbers[name].accuracy for name in (CLEAN, metric)] for one in eligible]
    front = [one for one, optimal in zip(eligible, on_front(points), strict=True) if optimal]
    ranked = []
    for reason, one in order:
        difference = None
        if eligible and one is not eligible[0]:
            difference = _difference(one, eligible[0], metric, paired)
        ranked.append(RankedCandidate(one, reason, one in front, difference))
    return Ranking(protocol, metric, tuple(constraints), tuple(ranked))


def _sort_key(candidate: Candidate, metric: str) -> tuple[float, float, str, str]:
    numbers = candidate.numbers
    robust, clean = numbers[metric].accuracy, numbers[CLEAN].accuracy
    return -robust, -clean, candidate.name, candidate.model_id


def _exclusion(
    candidate: Candidate, constraints: Sequence[Constraint], allow_doubtful: bool
) -> str:
    reasons = [one.violation(candidate.numbers) for one in constraints]
    if candidate.doubts and not allow_doubtful:
        reasons.append("doubtful")
    return ", ".join(filter(None, reasons))


def _difference(one: Candidate, best: Candidate, metric: str, paired: Pairing) -> Difference:
    number, reference = one.numbers[metric], best.numbers[metric]
    value = number.accuracy - reference.accuracy
    if number.low > reference.high or reference.low > number.high:
        return Difference(value, False, None)  # the paired test would agree
    comparison = paired(one, best)
    if comparison is None:
        return Difference(value, True, None)
    return Difference(value, comparison.p_value > SIGNIFICANCE, comparison.p_value)
