"""Suites and ensembles: sets of attacks that are reported together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raymi.attacks.catalogue import EvaluationAttack, Threat, find_attack
from raymi.errors import UserError, did_you_mean

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The reference ensemble: 100 iterations, 9 targets, 5000 queries (Croce and Hein 2020)."""


@dataclass(frozen=True)
class Ensemble:
    """Sequence of attacks, each on the samples that no earlier one broke.

    A sample is robust if no attack breaks it.

    Args:
        name: name of its robust accuracy.
        attacks: at least one attack.
        everyone: run the first attack on misclassified samples, too.
        most: approximate number of samples to attack, in whole blocks; None: all.
    """

    name: str
    attacks: tuple[EvaluationAttack, ...]
    everyone: bool = False
    most: int | None = None


ENSEMBLES: dict[str, tuple[str, ...]] = {
    "autoattack": AUTOATTACK,
    "autoattack-plus": (
        "apgd-ce-plus", "apgd-dlr-plus", "fab-plus", "square", "apgd-t", "fab-t",
    ),
    "autoattack-rand": ("apgd-ce-rand", "apgd-dlr-rand"),
}  # fmt: skip
"""Attacks of each ensemble."""
SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("pgd-20",),
    "autoattack": ("autoattack",),
    "standard": ("pgd-40", "autoattack"),
    "plus": ("autoattack-plus",),
    "rand": ("autoattack-rand",),
    "paper-linf": ("pgd-40", "autoattack", "fwa-40", "ti-dim"),
    "paper-l2": ("pgd-40", "autoattack", "cw", "ddn"),
}
"""Ensembles and single attacks that each suite reports besides clean accuracy."""


def ensembles_of(
    names: Iterable[str], threat: Threat, num_classes: int, channels: int = 3
) -> tuple[Ensemble, ...]:
    """Returns the ensembles of names of ensembles and attacks, without duplicates.

    Raises:
        UserError: Has a line for each attack that cannot be used on this threat and data.
    """
    found = tuple(
        Ensemble(name, tuple(map(find_attack, ENSEMBLES.get(name, (name,)))))
        for name in dict.fromkeys(names)
    )
    problems = [
        problem
        for ensemble in found
        for attack in ensemble.attacks
        if (problem := attack.problem(threat, num_classes, channels)) is not None
    ]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return found


def suite(name: str) -> tuple[str, ...]:
    """Returns the names of a suite's ensembles and attacks.

    Raises:
        UserError: The suite is unknown.
    """
    if name not in SUITES:
        raise UserError(f"unknown suite {name!r}: {did_you_mean(name, SUITES)}")
    return SUITES[name]
