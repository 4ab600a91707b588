"""Signs that a robust accuracy is not real: gradients that mislead, outputs that attacks misread.

Each check says what it measured, and whether that would be odd for a network that is robust. None
of them proves anything; together they find what the literature keeps finding.

Source: Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
Sec. 3; Carlini et al., "On evaluating adversarial robustness", 2019; the flags of AutoAttack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.attacks.catalogue import Batch, Threat, find_attack, run_attack
from raymi.attacks.untouched import untouched
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.evaluation.statistics import compare_paired, wilson_interval
from raymi.models.modes import full_precision

MULTIPLES = (0.5, 1.0, 2.0, 4.0)
"""Of eps, at which the curve of accuracies is taken, before the radius that allows everything."""

SIGNIFICANT = 0.01
"""p-value below which a difference between two attacks on the same samples is not chance."""


@dataclass(frozen=True)
class Finding:
    """What a check measured, in words, and whether it is a sign of false robustness."""

    check: str
    suspicious: bool
    text: str


def check_robustness(
    model: nn.Module,
    images: ImageSet,
    threat: Threat,
    *,
    num: int = 200,
    seed: int = 0,
    heartbeat: Callable[[str], None] | None = None,
) -> Iterator[Finding]:
    """Looks for signs of false robustness on the first images.

    Args:
        model: images in [0, 1] to logits (B, K), on the images' device; left as it was.
        images: of which the first `num` are taken.
        threat: of the accuracy in doubt.
        heartbeat: told what is looked at next.
    Raises: ValueError where there are no images.
    """
    if min(num, len(images)) < 1:
        raise ValueError("expected at least one image to check on, got none")
    index = torch.arange(min(num, len(images)), device=images.labels.device)
    x, y = to_unit(images.images[index]), images.labels[index]
    begin = heartbeat or (lambda _: None)
    begin("outputs and gradients")
    with untouched(model):
        with torch.no_grad():
            logits, again = (full_precision(model(x)) for _ in range(2))
        slopes = _slopes(model, x, y)
    yield from (_randomised(logits, again), _probabilities(logits), _gradients(slopes))
    right = logits.argmax(dim=1) == y
    batch = Batch(x[right], y[right], index[right], seed)
    if not len(batch.x):
        return

    def withstand(name: str, eps: float) -> Tensor:
        begin(f"{name}, eps {eps:g}")
        return ~run_attack(find_attack(name), model, batch, Threat(threat.norm, eps)).broken

    if slopes is None:  # nothing that attacks by gradients could begin with
        yield _black_box(withstand("square-1000", threat.eps), torch.ones_like(batch.y).bool())
        return
    iterated = withstand("pgd-20", threat.eps)
    yield _one_step(withstand("fgsm", threat.eps), iterated)
    by_gradient = iterated & withstand("apgd-ce", threat.eps)
    yield _black_box(withstand("square-1000", threat.eps), by_gradient)
    everything = 1.0 if threat.norm == "linf" else float(x[0].numel()) ** 0.5
    radii = [*(m * threat.eps for m in MULTIPLES if m * threat.eps < everything), everything]
    curve = {
        eps: iterated if eps == threat.eps else withstand("pgd-20", eps) for eps in sorted(radii)
    }
    yield _curve(curve, len(x), logits.shape[1])


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


def _curve(curve: dict[float, Tensor], num: int, num_classes: int) -> Finding:
    radii = list(curve)
    rises = [
        (small, large)
        for small, large in pairwise(radii)
        if (found := compare_paired(curve[large], curve[small])).only_first > found.only_second
        and found.p_value < SIGNIFICANT
    ]
    at_most = {eps: int(left.sum()) for eps, left in curve.items()}
    low, _ = wilson_interval(at_most[radii[-1]], num)
    above_chance = low > 1 / num_classes
    text = ", ".join(f"{100 * n / num:.1f}% at {eps:.3g}" for eps, n in at_most.items())
    if rises:
        text += "; it rises from eps {:.3g} to {:.3g}".format(*rises[0])
    if above_chance:
        text += "; with everything allowed it is still above chance"
    return Finding("accuracy over eps", bool(rises) or above_chance, f"PGD-20: {text}")
