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
        means: names of the means to which its accuracy belongs; they are reported in its place,
            and its own accuracy is a detail.
        note: remark for reports.
    """

    name: str
    attacks: tuple[EvaluationAttack, ...]
    everyone: bool = False
    most: int | None = None
    means: tuple[str, ...] = ()
    note: str = ""


CORRUPTIONS = "corruptions"
"""Name among attacks of all common corruptions, and of their mean accuracy, see
`raymi.attacks.corruptions`."""
CORRUPTION = "corruption-"
"""Prefix of the name of a corruption: corruption-fog is fog, corruption-fog-3 fog of severity 3."""
SEVERITIES = 5
FEW_CLASSES = "few-classes"
ENSEMBLES: dict[str, tuple[str, ...]] = {
    "autoattack": AUTOATTACK,
    "autoattack-plus": (
        "apgd-ce-plus", "apgd-dlr-plus", "fab-plus", "square", "apgd-t", "fab-t",
    ),
    "autoattack-rand": ("apgd-ce-rand", "apgd-dlr-rand"),
    "fast": ("apgd-ce", "malt"),
    FEW_CLASSES: ("apgd-ce", "apgd-dlr", "fab-t", "square"),
}  # fmt: skip
"""Attacks of each ensemble."""
SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("pgd-20",),
    "autoattack": ("autoattack",),
    "standard": ("pgd-40", "autoattack"),
    "plus": ("autoattack-plus",),
    "rand": ("autoattack-rand",),
    "fast": ("fast",),
    "few-classes": ("pgd-40", FEW_CLASSES),
    "corruptions": (CORRUPTIONS,),
    "paper-linf": ("pgd-40", "autoattack", "fwa-40", "ti-dim"),
    "paper-l2": ("pgd-40", "autoattack", "cw", "ddn"),
}
"""Ensembles and single attacks that each suite reports besides clean accuracy."""


def _ensemble(name: str, num_classes: int) -> Ensemble:
    """Returns an ensemble, or a single attack as one; `few-classes` has what the classes allow."""
    attacks = tuple(map(find_attack, ENSEMBLES.get(name, (name,))))
    if name != FEW_CLASSES:
        return Ensemble(name, attacks)
    least = find_attack("apgd-t").least_classes
    if num_classes >= least:
        raise UserError(
            f"{name} leaves out apgd-t, which {num_classes} classes allow: give autoattack"
        )
    usable = tuple(attack for attack in attacks if attack.least_classes <= num_classes)
    names = ", ".join(attack.name for attack in usable)
    note = f"{name} is weaker than AutoAttack: {names}, without apgd-t, which needs {least} classes"
    return Ensemble(name, usable, note=note)


def ensembles_of(
    names: Iterable[str], threat: Threat, num_classes: int, channels: int = 3
) -> tuple[Ensemble, ...]:
    """Returns the ensembles of names of ensembles and attacks, without duplicates.

    Raises:
        UserError: Has a line for each attack that cannot be used on this threat and data.
    """
    found = tuple(_ensemble(name, num_classes) for name in dict.fromkeys(names))
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
