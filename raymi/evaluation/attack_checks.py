"""Signs that a robust accuracy is not real, which attacks show: gradients that mislead.

Each check says what it measured, and whether that would be odd for a network that is robust. None
of them proves anything; together they find what the literature keeps finding.

Source: Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
Sec. 3; Carlini et al., "On evaluating adversarial robustness", 2019; the flags of AutoAttack.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from raymi.attacks.catalogue import find_attack
from raymi.attacks.suites import Ensemble
from raymi.evaluation.blocks import CLEAN, Outcome, Step
from raymi.evaluation.finding import FEW, Finding
from raymi.evaluation.summary import withstood
from raymi.statistics import compare_paired, wilson_interval

RADII = {
    0.5: "pgd-20@0.5eps",
    1.0: "pgd-20",
    2.0: "pgd-20@2eps",
    4.0: "pgd-20@4eps",
    float("inf"): "pgd-20@any",
}
"""The attacks of the curve of accuracies, by what they multiply eps with."""

SIGNIFICANT = 0.01
"""p-value below which a difference between two attacks on the same samples is not chance."""


def check_ensembles(
    num: int, num_classes: int, *, differentiable: bool = True
) -> tuple[Ensemble, ...]:
    """The attacks by which false robustness is looked for, each by itself.

    Args: num, samples to look at; num_classes, K; differentiable, False: only those that need no
        gradient.
    """
    margin = ("apgd-dlr",) if num_classes >= find_attack("apgd-dlr").least_classes else ()
    by_gradient = ("fgsm", "apgd-ce", *margin, *RADII.values()) if differentiable else ()
    return tuple(
        Ensemble(name, (find_attack(name),), most=num) for name in (*by_gradient, "square-1000")
    )


def judge_attacks(outcomes: Iterable[tuple[Step, Outcome]], num_classes: int) -> Iterator[Finding]:
    """What the attacks of `check_ensembles` say together.

    Args: outcomes, of them and of the clean step, complete, of the blocks that they attack;
        num_classes, K.
    """
    made = list(outcomes)
    looked_at = torch.cat([outcome.samples for step, outcome in made if step.attack == CLEAN])
    most = int(looked_at.max()) + 1
    names = {step.ensemble for step, _ in made}
    left = {name: withstood(made, name, most)[looked_at] for name in names}
    right = left[CLEAN]
    yield at_chance(int(right.sum()), len(right), num_classes)
    withstand = {name: mask[right] for name, mask in left.items()}
    square = withstand["square-1000"]
    if "fgsm" not in withstand:  # nothing that attacks by gradients could begin with
        yield black_box(square, torch.ones_like(square))
        return
    yield one_step(withstand["fgsm"], withstand["pgd-20"])
    by_gradient = withstand["pgd-20"] & withstand["apgd-ce"]
    yield black_box(square, by_gradient & withstand.get("apgd-dlr", by_gradient))
    curve = {radius: withstand[name] for radius, name in RADII.items()}
    yield radius_curve(curve, len(right), num_classes)


def judge_transfer(transferred: Tensor, itself: Tensor, surrogate: str) -> Finding:
    """Whether samples that were made on another network break what the same attack on the network
    itself does not.

    Args: transferred, itself (N,) bool, which samples withstand either; surrogate, its name.
    """
    found = compare_paired(itself, transferred)
    stronger = found.only_first > found.only_second and found.p_value < SIGNIFICANT
    return Finding(
        f"transfer from {surrogate} stronger than white box",
        stronger,
        f"samples of {surrogate} alone break {found.only_first}, the attack on the network itself "
        f"alone {found.only_second}",
    )


def at_chance(right: int, num: int, num_classes: int) -> Finding:
    """Tests whether the accuracy on natural images is above chance."""
    from scipy.stats import binomtest

    chance = binomtest(right, num, 1 / num_classes, alternative="greater").pvalue
    return Finding(
        "clean accuracy at chance",
        bool(chance > 0.05) and num >= max(FEW, 3 * num_classes),
        f"{right} of {num} images are classified right, {num_classes} classes",
        conclusive=num >= max(FEW, 3 * num_classes) or bool(chance <= 0.05),
    )


def one_step(fgsm: Tensor, pgd: Tensor) -> Finding:
    """Tests whether FGSM breaks samples that PGD does not.

    Args:
        fgsm: (N,) bool, samples that withstand FGSM.
        pgd: (N,) bool, samples that withstand PGD.
    """
    found = compare_paired(pgd, fgsm)  # only_first: broken by FGSM alone
    stronger = found.only_first > found.only_second and found.p_value < SIGNIFICANT
    return Finding(
        "one step stronger than many",
        stronger,
        f"FGSM alone breaks {found.only_first} of {len(pgd)} images, PGD-20 alone "
        f"{found.only_second}",
        conclusive=len(pgd) >= FEW,
    )


def black_box(square: Tensor, by_gradient: Tensor) -> Finding:
    """Tests whether Square breaks samples that no attack by gradients does.

    Args:
        square: (N,) bool, samples that withstand Square.
        by_gradient: (N,) bool, samples that withstand all attacks by gradients.
    """
    missed, num = int((by_gradient & ~square).sum()), len(square)
    return Finding(
        "black box stronger than gradients",
        missed > max(2, 0.01 * num),
        f"Square with 1000 queries breaks {missed} of {num} images that PGD-20 and APGD could not",
        conclusive=num >= FEW,
    )


def radius_curve(curve: Mapping[float, Tensor], num: int, num_classes: int) -> Finding:
    """Tests whether accuracy rises with the radius, or stays above chance without a limit.

    Args:
        curve: (N,) bool by multiple of eps, the samples that are right and withstand.
        num: samples in all.
        num_classes: K.
    """
    rises = [
        (small, large)
        for small, large in pairwise(curve)
        if (found := compare_paired(curve[large], curve[small])).only_first > found.only_second
        and found.p_value < SIGNIFICANT
    ]
    at_most = {radius: int(left.sum()) for radius, left in curve.items()}
    lowest = at_most[max(curve)]
    above_chance = wilson_interval(lowest, num)[0] > 1 / num_classes
    text = ", ".join(f"{100 * n / num:.1f}% at {_radius(r)}" for r, n in at_most.items())
    if rises:
        text += "; it rises from {} to {}".format(*map(_radius, rises[0]))
    if above_chance:
        text += "; with everything allowed it is still above chance"
    suspicious = bool(rises) or above_chance
    return Finding("accuracy over eps", suspicious, f"PGD-20: {text}", conclusive=num >= FEW)


def _radius(multiple: float) -> str:
    return "any radius" if multiple == float("inf") else f"{multiple:g} eps"
