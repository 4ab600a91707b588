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
from raymi.evaluation.outputs import difference
from raymi.evaluation.robustness import withstood
from raymi.evaluation.statistics import compare_paired, wilson_interval
from raymi.models.modes import FullPrecision

RADII = {
    0.5: "pgd-20@0.5eps",
    1.0: "pgd-20",
    2.0: "pgd-20@2eps",
    4.0: "pgd-20@4eps",
    float("inf"): "pgd-20@any",
}
"""The attacks of the curve of accuracies, by what they multiply eps with."""

_FORWARDS = 10  # a network that draws seldom may give the same twice
_ALONE = 5  # images of a small batch, beside the large one
_ROUNDING = 1e-3  # of the logits' spread
_FEW = 20  # images of which little can be said

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


@dataclass(frozen=True)
class Examination:
    """What is seen without an attack: findings; `logits` (N, K) of the images, on the CPU, by which
    the network is known again, None where they are random; whether autograd follows the outputs."""

    findings: tuple[Finding, ...]
    logits: Tensor | None
    differentiable: bool


def examine_network(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> Examination:
    """Looks for randomness, state, dependence on other images, probabilities in place of logits,
    and gradients that vanish.

    Args: model, images in [0, 1] to logits (B, K), left as it was; x (B, C, H, W), at least one;
        y (B,); seed.
    """
    model = FullPrecision(model)
    with untouched(model, seed):
        before = [buffer.clone() for buffer in model.buffers()]
        with torch.no_grad():
            logits, *again = (model(x) for _ in range(_FORWARDS))
            changed = sum(not _same(*pair) for pair in zip(model.buffers(), before, strict=True))
            parts = torch.cat([model(part) for part in x.split(_ALONE)])
        margins, losses = _slopes(model, x, y)
    random = _randomised(logits, again)
    findings = (
        random,
        _stateful(changed),
        _company(logits, parts, known=not random.suspicious),
        _finite(logits),
        _probabilities(logits),
        _gradients("margin", margins, len(x)),
        _gradients("cross-entropy", losses, len(x)),
    )
    kept = None if random.suspicious or changed else logits.cpu()
    return Examination(findings, kept, margins is not None)


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
    yield _at_chance(int(right.sum()), num, num_classes)
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


def _randomised(logits: Tensor, again: Iterable[Tensor]) -> Finding:
    largest = max(difference(logits, other) for other in again)
    return Finding(
        "randomised outputs",
        largest > _ROUNDING,
        f"{_FORWARDS} forwards of the same images differ by up to {largest:.1g} of the logits' "
        "spread",
    )


def _stateful(changed: int) -> Finding:
    return Finding(
        "state that changes",
        changed > 0,
        f"{changed} buffers change in eval mode"
        + (": each attack begins with those of before" if changed else ""),
    )


def _company(logits: Tensor, parts: Tensor, *, known: bool) -> Finding:
    largest = difference(logits, parts)
    return Finding(
        "outputs that depend on other images",
        known and largest > 0.03,  # more than bf16 rounds otherwise
        f"logits of images in parts of {_ALONE} and all at once differ by up to {largest:.1g} of "
        "their spread",
    )


def _finite(logits: Tensor) -> Finding:
    num = int((~logits.isfinite()).any(dim=1).sum())
    return Finding(
        "outputs that are not finite",
        num > 0,
        f"logits of {num} of {len(logits)} images are infinite or not a number",
    )


def _probabilities(logits: Tensor) -> Finding:
    lowest, highest = logits.min().item(), logits.max().item()
    sums = logits.sum(dim=1)
    alike = bool(((sums - sums[0]).abs() <= 0.02 * sums[0].abs()).all()) and len(sums) > 1
    text = f"outputs lie in [{lowest:.3g}, {highest:.3g}]"
    if lowest >= -1e-5 and alike:
        text += f", and sum to about {sums[0].item():.3g} for each image: attacks need logits"
    elif lowest >= -1e-5 and highest <= 1 + 1e-5:
        text += ", as probabilities do: attacks need logits"
    return Finding("probabilities as outputs", "attacks need logits" in text, text)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _slopes(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The largest entry of the gradients by each image of its margin, and of its cross-entropy,
    (B,) each; None where the outputs do not depend on the images as autograd sees it."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
        if not logits.requires_grad:
            return None, None
        own = logits.gather(1, y[:, None]).squeeze(1)
        margin = own - logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
        loss = F.cross_entropy(logits, y, reduction="sum")
    found = []
    for value in (margin.sum(), loss):
        (grad,) = torch.autograd.grad(value, x, allow_unused=True, retain_graph=True)
        found.append(None if grad is None else grad.flatten(1).abs().amax(dim=1))
    return found[0], found[1]


def _gradients(of: str, slopes: Tensor | None, num: int) -> Finding:
    dead = num
    if slopes is not None:
        dead = int((~slopes.isfinite() | (slopes < 1e-12)).sum())
    return Finding(
        f"gradients of the {of} that vanish",
        dead > max(2, 0.02 * num) or dead == num,
        f"the gradient of the {of} is zero or not finite for {dead} of {num} images",
    )


def _at_chance(right: int, num: int, num_classes: int) -> Finding:
    low, _ = wilson_interval(right, num)
    return Finding(
        "clean accuracy at chance",
        num >= _FEW and low <= 1 / num_classes,
        f"{right} of {num} images are classified right, {num_classes} classes"
        + (", too few to tell" if num < _FEW else ""),
    )


def _one_step(fgsm: Tensor, pgd: Tensor) -> Finding:
    found = compare_paired(pgd, fgsm)  # only_first: broken by FGSM alone
    stronger = found.only_first > found.only_second and found.p_value < SIGNIFICANT
    return Finding(
        "one step stronger than many",
        stronger,
        f"FGSM alone breaks {found.only_first} of {len(pgd)} images, PGD-20 alone "
        f"{found.only_second}{_too_few(len(pgd))}",
    )


def _black_box(square: Tensor, by_gradient: Tensor) -> Finding:
    missed, num = int((by_gradient & ~square).sum()), len(square)
    return Finding(
        "black box stronger than gradients",
        missed > max(2, 0.01 * num),
        f"Square with 1000 queries breaks {missed} of {num} images that PGD-20 and APGD could not"
        + _too_few(num),
    )


def _too_few(num: int) -> str:
    return "" if num >= _FEW else ": too few images to tell much" if num else ": not measured"


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
