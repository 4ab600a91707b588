"""The order of classifiers by robust accuracy, the Pareto front, and which differences are real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from raymi.errors import UserError
from raymi.selection.candidate import CLEAN, Candidate, Number, Protocol
from raymi.selection.constraints import Constraint
from raymi.selection.front import on_front
from raymi.statistics import PairedComparison

LEVEL = 0.05
"""Of McNemar's test: differences with a larger p-value are within noise."""

Pairing = Callable[[Candidate, Candidate], PairedComparison | None]
"""Compares two models sample by sample; None where their outcomes are not known."""


class Difference(NamedTuple):
    """A model's accuracy minus that of the chosen one; whether that is within noise; the p-value of
    McNemar's test on the same samples, None where only intervals could be compared."""

    value: float
    within_noise: bool
    p_value: float | None


@dataclass(frozen=True)
class Place:
    """A model in a ranking: why it may not be chosen, empty where it may; whether no other one that
    may is better in clean and robust accuracy; how it differs from the chosen one, None for that
    one itself, and where none is chosen."""

    candidate: Candidate
    excluded: str
    on_front: bool
    difference: Difference | None


@dataclass(frozen=True)
class Ranking:
    """Models by their accuracy under an attack, best first, those that may not be chosen last."""

    protocol: Protocol
    metric: str
    constraints: tuple[Constraint, ...]
    places: tuple[Place, ...]

    @property
    def eligible(self) -> tuple[Place, ...]:
        """Those that may be chosen."""
        return tuple(place for place in self.places if not place.excluded)

    @property
    def chosen(self) -> Candidate:
        """The best one that may be chosen.

        Raises: UserError with what would have to change, where there is none.
        """
        if self.eligible:
            return self.eligible[0].candidate
        what = ", ".join(map(str, self.constraints)) or "no sign of false robustness"
        best = ", ".join(_best(self.places, name) for name in self._asked_for)
        doubtful = any(place.candidate.doubts for place in self.places)
        remedy = "; doubtful=allow takes doubtful ones" if doubtful else ""
        raise UserError(
            f"none of {len(self.places)} models satisfies {what}; the best values are {best}: "
            f"relax a constraint, or train and evaluate others{remedy}"
        )

    @property
    def _asked_for(self) -> tuple[str, ...]:
        names = [CLEAN, self.metric, *(one.name for one in self.constraints)]
        return tuple(dict.fromkeys(names))

    def number(self, candidate: Candidate) -> Number:
        """What it is ranked by."""
        return candidate.numbers[self.metric]

    def as_json(self) -> dict[str, Any]:
        """In JSON's types; accuracies are fractions."""
        return {
            "question": self.protocol._asdict(),
            "metric": self.metric,
            "constraints": list(map(str, self.constraints)),
            "chosen": self.eligible[0].candidate.model_id if self.eligible else None,
            "models": [
                {
                    "name": place.candidate.name,
                    "model_id": place.candidate.model_id,
                    "run_id": place.candidate.run_id,
                    "numbers": {k: v._asdict() for k, v in place.candidate.numbers.items()},
                    "doubts": place.candidate.doubts,
                    "excluded": place.excluded,
                    "on_front": place.on_front,
                    "difference": place.difference._asdict() if place.difference else None,
                }
                for place in self.places
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

    Args: candidates of one question, all measured with the metric; constraints that the chosen one
        satisfies; allow_doubtful, whether it may show signs of false robustness; paired.
    """
    (protocol,) = {one.protocol for one in candidates}
    judged = [(_excluded(one, constraints, allow_doubtful), one) for one in candidates]
    judged.sort(key=lambda pair: (bool(pair[0]), *_merit(pair[1], metric)))
    eligible = [one for reason, one in judged if not reason]
    points = [[one.numbers[name].accuracy for name in (CLEAN, metric)] for one in eligible]
    front = [one for one, is_on in zip(eligible, on_front(points), strict=True) if is_on]
    places = []
    for reason, one in judged:
        difference = None
        if eligible and one is not eligible[0]:
            difference = _difference(one, eligible[0], metric, paired)
        places.append(Place(one, reason, one in front, difference))
    return Ranking(protocol, metric, tuple(constraints), tuple(places))


def _merit(candidate: Candidate, metric: str) -> tuple[float, float, str, str]:
    numbers = candidate.numbers
    robust, clean = numbers[metric].accuracy, numbers[CLEAN].accuracy
    return -robust, -clean, candidate.name, candidate.model_id


def _excluded(candidate: Candidate, constraints: Sequence[Constraint], allow_doubtful: bool) -> str:
    reasons = [one.broken_by(candidate.numbers) for one in constraints]
    if candidate.doubts and not allow_doubtful:
        reasons.append("doubtful")
    return ", ".join(filter(None, reasons))


def _difference(one: Candidate, best: Candidate, metric: str, paired: Pairing) -> Difference:
    mine, its = one.numbers[metric], best.numbers[metric]
    value = mine.accuracy - its.accuracy
    if mine.low > its.high or its.low > mine.high:  # also paired: it can only be clearer
        return Difference(value, False, None)
    found = paired(one, best)
    if found is None:
        return Difference(value, True, None)
    return Difference(value, found.p_value > LEVEL, found.p_value)


def _best(places: Sequence[Place], name: str) -> str:
    there = [
        (place.candidate.numbers[name].accuracy, place.candidate.name)
        for place in places
        if name in place.candidate.numbers
    ]
    if not there:
        return f"{name}: not measured"
    value, model = max(there)
    return f"{name} {value:.4f} ({model})"
