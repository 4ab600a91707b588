"""Constraints on the chosen classifier, written as `clean>=0.80`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raymi.formatting import shortened, shown
from raymi.statistics import Number

_WORD = re.compile(r"(?P<name>[^=<>]+)(?P<sign>>=|<=|>|<)(?P<bound>.*)")
_HOLDS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_ROUNDING = 1e-12  # 0.8 of 10 images must be at least 0.8, however it was computed


class Constraint(NamedTuple):
    """Bound on an accuracy.

    Attributes:
        name: of the accuracy: an attack, or "clean".
        sign: one of >=, <=, >, <.
        bound: fraction.
    """

    name: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.bound:g}"

    def violation(self, numbers: Mapping[str, Number]) -> str:
        """Returns why a classifier violates the constraint; empty if it does not."""
        number = numbers.get(self.name)
        if number is None:
            return f"no {self.name}"
        slack = {">=": -_ROUNDING, "<=": _ROUNDING}.get(self.sign, 0.0)
        if _HOLDS[self.sign](number.accuracy, self.bound + slack):
            return ""
        return f"not {self}"


def is_constraint(word: str) -> bool:
    """Returns whether a word of a command line reads as a constraint."""
    return _WORD.fullmatch(word) is not None


def read_constraints(words: Sequence[str], problems: list[str]) -> tuple[Constraint, ...]:
    """Parses constraints.

    Args:
        words: one constraint each.
        problems: extended by a line for each invalid constraint.

    Returns:
        The constraints in order, each once.
    """
    constraints = []
    for word in words:
        match = _WORD.fullmatch(word)
        if match is None:
            problems.append(
                f"{shortened(word)}: expected a constraint such as 'clean>=0.80', in quotes: "
                "without them the shell redirects output to a file"
            )
        elif (bound := _fraction(match["bound"])) is None:
            better = f"{shortened(match['name'])}{match['sign']}0.8"
            problems.append(
                f"{shortened(word)}: expected a fraction from 0 to 1 after {match['sign']}, got "
                f"{shown(match['bound'])}: write {better} for 80%"
            )
        else:
            constraints.append(Constraint(match["name"].strip(), match["sign"], bound))
    return tuple(dict.fromkeys(constraints))


def _fraction(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
