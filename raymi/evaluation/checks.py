"""Signs that a robust accuracy is not real: gradients that mislead, outputs that attacks misread.

Each check says what it measured, and whether that would be odd for a network that is robust. None
of them proves anything; together they find what the literature keeps finding.

Source: Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
Sec. 3; Carlini et al., "On evaluating adversarial robustness", 2019; the flags of AutoAttack.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.attacks.catalogue import find_attack
from raymi.attacks.suites import Ensemble
from raymi.attacks.untouched import untouched
from raymi.evaluation.blocks import CLEAN, Outcome, Step
from raymi.evaluation.robustness import withstood
from raymi.evaluation.statistics import compare_paired, wilson_interval
from raymi.models.modes import full_precision

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


@dataclass(frozen=True)
class Finding:
    """What a check measured, in words, and whether it is a sign of false robustness."""

    check: str
    suspicious: bool
    text: str


def check_ensembles(num: int, *, differentiable: bool = True) -> tuple[Ensemble, ...]:
    """The attacks by which false robustness is looked for, each by itself.

    Args: num, samples to look at; differentiable, False: only those that need no gradient.
    """
    by_gradient = ("fgsm", "apgd-ce", *RADII.values()) if differentiable else ()
    return tuple(
        Ensemble(name, (find_attack(name),), most=num) for name in (*by_gradient, "square-1000")
    )


def examine_outputs(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> list[Finding]:
    """What can be seen without an attack: randomness, probabilities in place of logits, gradients.

    Args: model, images in [0, 1] to logits (B, K), left as it was; x (B, C, H, W); y (B,); seed.
    """
    with untouched(model, seed):
        with torch.no_grad():
            logits, again = (full_precision(model(x)) for _ in range(2))
        slopes = _slopes(model, x, y)
    return [_randomised(logits, again), _probabilities(logits), _gradients(slopes)]


def is_differentiable(model: nn.Module, x: Tensor) -> bool:
    """Whether the outputs depend on the images as autograd sees it: else no attack by gradients
    can begin."""
    with untouched(model):
        return (
            _slopes(model, x, torch.zeros(len(x), dtype=torch.int64, device=x.device)) is not None
        )


def judge_attacks(
    outcomes: Iterable[tuple[Step, Outcome]], num: int, num_classes: int
) -> Iterator[Finding]:
    """What the attacks of `check_ensembles` say together.

    Args: outcomes, of them and of the clean step, complete; num, samples that they were given: the
        first ones; num_classes, K.
    """
    made = [(step, outcome) for step, outcome in outcomes if (outcome.samples < num).all()]
    left = {step.ensemble: withstood(made, step.ensemble, num) for step, _ in made}
    right = left[CLEAN]
    withstand = {name: mask[right] for name, mask in left.items()}
    square = withstand["square-1000"]
    if "fgsm" not in withstand:  # nothing that attacks by gradients could begin with
        yield _black_box(square, torch.ones_like(square))
        return
    yield _one_step(withstand["fgsm"], withstand["pgd-20"])
    yield _black_box(square, withstand["pgd-20"] & withstand["apgd-ce"])
    yield _curve({radius: withstand[name] for radius, name in RADII.items()}, num, num_classes)


def judge_transfer(transferred: Tensor, itself: Tensor, surrogate: str) -> Finding:
    """Whether samples that were made on another network break what the same attack on the network
    itself does not.

    Args: transferred, itself (N,) bool, which samples withstand either; surrogate, its name.
    """
    found = compare_paired(itself, transferred)
    stronger = found.only_first > found.only_second and found.p_value < SIGNIFICANT
    return Finding(
        "transfer stronger than white box",
        stronger,
        f"samples of {surrogate} alone break {found.only_first}, the attack on the network itself "
        f"alone {found.only_second}",
    )


def _randomised(logits: Tensor, again: Tensor) -> Finding:
    unit, other = (F.normalize(one, dim=1) for one in (logits, again))
    largest = (unit - other).norm(dim=1).max().item()
    return Finding(
        "randomised outputs",
        not largest <= 1e-4,  # also where it is not a number
        f"two forwards of the same images differ by up to {largest:.1g} of the logits' norm",
    )


def _probabilities(logits: Tensor) -> Finding:
    inside = bool((logits.min() >= -1e-5) & (logits.max() <= 1 + 1e-5))
    to_one = bool(((logits.sum(dim=1) - 1).abs() < 1e-4).all())
    lowest, highest = logits.min().item(), logits.max().item()
    return Finding(
        "probabilities as outputs",
        inside and to_one,
        f"outputs lie in [{lowest:.3g}, {highest:.3g}]"
        + (", and sum to 1: attacks need logits" if inside and to_one else ""),
    )


def _slopes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
    """The largest entry of the margin's gradient by each image, (B,); None where the outputs do not
    depend on the images as autograd sees it."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = full_precision(model(x))
    if not logits.requires_grad:
        return None
    own = logits.gather(1, y[:, None]).squeeze(1)
    best_other = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    (grad,) = torch.autograd.grad((own - best_other).sum(), x, allow_unused=True)
    return None if grad is None else grad.flatten(1).abs().amax(dim=1)


def _gradients(slopes: Tensor | None) -> Finding:
    share = 1.0
    if slopes is not None:
        share = (~slopes.isfinite() | (slopes < 1e-12)).float().mean().item()
    return Finding(
        "gradients that vanish",
        share > 0.01,
        f"the margin's gradient is zero or not finite for {100 * share:.1f}% of the images",
    )


def _one_step(fgsm: Tensor, pgd: Tensor) -> Finding:
    found = compare_paired(pgd, fgsm)  # only_first: broken by FGSM alone
    stronger = found.only_first > found.only_second and found.p_value < SIGNIFICANT
    return Finding(
        "one step stronger than many",
        stronger,
        f"FGSM alone breaks {found.only_first} of {len(pgd)} images, PGD-20 alone "
        f"{found.only_second}",
    )


def _black_box(square: Tensor, by_gradient: Tensor) -> Finding:
    missed = int((by_gradient & ~square).sum())
    return Finding(
        "black box stronger than gradients",
        missed > max(1, 0.01 * len(square)),
        f"Square with 1000 queries breaks {missed} of {len(square)} images that PGD-20 and APGD "
        "could not",
    )


def _curve(curve: Mapping[float, Tensor], num: int, num_classes: int) -> Finding:
    """Args: curve, by multiples of eps which of the samples that are right withstand."""
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
    return Finding("accuracy over eps", bool(rises) or above_chance, f"PGD-20: {text}")


def _radius(multiple: float) -> str:
    return "any radius" if multiple == float("inf") else f"{multiple:g} eps"
