"""Sets of attacks that are reported together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raymi.attacks.catalogue import EvaluationAttack, Threat, find_attack
from raymi.errors import UserError, did_you_mean

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The reference ensemble: 100 iterations, 9 targets, 5000 queries (Croce and Hein 2020)."""


@dataclass(frozen=True)
class Ensemble:
    """Attacks in order, each on the samples that withstood those before; a sample withstands the
    ensemble if none breaks it.

    Args:
        name: under which its robust accuracy is reported.
        attacks: at least one.
        everyone: whether the first attack gets the misclassified samples, too.
        most: only as many blocks as have about so many samples are attacked; None: all.
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
"""The attacks of each ensemble."""
SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("pgd-20",),
    "autoattack": ("autoattack",),
    "standard": ("pgd-40", "autoattack"),
    "plus": ("autoattack-plus",),
    "rand": ("autoattack-rand",),
    "paper-linf": ("pgd-40", "autoattack", "fwa-40", "ti-dim"),
    "paper-l2": ("pgd-40", "autoattack", "cw", "ddn"),
}
"""What each suite reports, beside clean accuracy: ensembles, or attacks by themselves."""


def ensembles_of(
    names: Iterable[str], threat: Threat, num_classes: int, channels: int = 3
) -> tuple[Ensemble, ...]:
    """What names of ensembles and attacks stand for, checked before any of them begins; a name that
    is given twice counts once.

    Raises: UserError with a line for each attack that cannot be used on this threat and data.
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
    """What a suite reports.

    Raises: UserError with what there is.
    """
    if name not in SUITES:
        raise UserError(f"unknown suite {name!r}: {did_you_mean(name, SUITES)}")
    return SUITES[name]
