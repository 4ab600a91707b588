"""Attacks that look for signs of false robustness, such as gradients that mislead.

Each check reports what it measured, and whether a robust network would rarely show it. No check is
a proof.

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
from raymi.evaluation.summary import robust_samples
from raymi.statistics import compare_paired, wilson_interval

RADII = {
    0.5: "pgd-20@0.5eps",
    1.0: "pgd-20",
    2.0: "pgd-20@2eps",
    4.0: "pgd-20@4eps",
    float("inf"): "pgd-20@any",
}
"""Attacks of the accuracy curve by their multiple of eps."""

SIGNIFICANT = 0.01
"""Largest p-value of a significant difference between two attacks on the same samples."""


def check_ensembles(
    num: int, num_classes: int, *, differentiable: bool = True
) -> tuple[Ensemble, ...]:
    """Returns the attacks of the checks, each as an ensemble.

    Args:
        num: samples to attack.
        num_classes: K.
        differentiable: False: only attacks that need no gradient.
    """
    margin = ("apgd-dlr",) if num_classes >= find_attack("apgd-dlr").least_classes else ()
    by_gradient = ("fgsm", "apgd-ce", *margin, *RADII.values()) if differentiable else ()
    return tuple(
        Ensemble(name, (find_attack(name),), most=num) for name in (*by_gradient, "square-1000")
    )


def attack_findings(
    outcomes: Iterable[tuple[Step, Outcome]], num_classes: int
) -> Iterator[Finding]:
    """Yields the findings of the attacks of `check_ensembles`.

    Args:
        outcomes: of these attacks and of the clean step, on the same blocks, none missing.
        num_classes: K.
    """
    outcomes = list(outcomes)
    attacked = torch.cat([outcome.samples for step, outcome in outcomes if step.attack == CLEAN])
    num = int(attacked.max()) + 1
    names = {step.ensemble for step, _ in outcomes}
    robust = {name: robust_samples(outcomes, name, num)[attacked] for name in names}
    right = robust[CLEAN]
    yield at_chance(int(right.sum()), len(right), num_classes)
    robust = {name: mask[right] for name, mask in robust.items()}
    square = robust["square-1000"]
    if "fgsm" not in robust:  # not differentiable
        yield black_box(square, torch.ones_like(square))
        return
    yield one_step(robust["fgsm"], robust["pgd-20"])
    by_gradient = robust["pgd-20"] & robust["apgd-ce"]
    yield black_box(square, by_gradient & robust.get("apgd-dlr", by_gradient))
    curve = {radius: robust[name] for radius, name in RADII.items()}
    yield radius_curve(curve, len(right), num_classes)


def transfer_finding(transferred: Tensor, white_box: Tensor, surrogate: str) -> Finding:
    """Tests whether a surrogate's samples break images that the white-box attack does not.

    Args:
        transferred: (N,) bool, samples robust to the attack made on the surrogate.
        white_box: (N,) bool, samples robust to the same attack made on the network itself.
        surrogate: name for the message.
    """
    pairs = compare_paired(white_box, transferred)
    stronger = pairs.only_first > pairs.only_second and pairs.p_value < SIGNIFICANT
    return Finding(
        f"transfer from {surrogate} stronger than white box",
        stronger,
        f"samples of {surrogate} alone break {pairs.only_first}, the attack on the network itself "
        f"alone {pairs.only_second}",
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
        fgsm: (N,) bool, samples robust to FGSM.
        pgd: (N,) bool, samples robust to PGD.
    """
    pairs = compare_paired(pgd, fgsm)  # only_first: broken by FGSM alone
    stronger = pairs.only_first > pairs.only_second and pairs.p_value < SIGNIFICANT
    return Finding(
        "one step stronger than many",
        stronger,
        f"FGSM alone breaks {pairs.only_first} of {len(pgd)} images, PGD-20 alone "
        f"{pairs.only_second}",
        conclusive=len(pgd) >= FEW,
    )


def black_box(square: Tensor, by_gradient: Tensor) -> Finding:
    """Tests whether Square breaks samples that no gradient attack does.

    Args:
        square: (N,) bool, samples robust to Square.
        by_gradient: (N,) bool, samples robust to all gradient attacks.
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
        curve: (N,) bool by multiple of eps, the samples that are right and robust.
        num: samples in all.
        num_classes: K.
    """
    rises = [
        (small, large)
        for small, large in pairwise(curve)
        if (pairs := compare_paired(curve[large], curve[small])).only_first > pairs.only_second
        and pairs.p_value < SIGNIFICANT
    ]
    counts = {radius: int(robust.sum()) for radius, robust in curve.items()}
    lowest = counts[max(curve)]
    above_chance = wilson_interval(lowest, num)[0] > 1 / num_classes
    text = ", ".join(f"{100 * n / num:.1f}% at {_radius(r)}" for r, n in counts.items())
    if rises:
        text += "; it rises from {} to {}".format(*map(_radius, rises[0]))
    if above_chance:
        text += "; with everything allowed it is still above chance"
    suspicious = bool(rises) or above_chance
    return Finding("accuracy over eps", suspicious, f"PGD-20: {text}", conclusive=num >= FEW)


def _radius(multiple: float) -> str:
    return "any radius" if multiple == float("inf") else f"{multiple:g} eps"
