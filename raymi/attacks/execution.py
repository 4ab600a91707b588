"""Execution of the attacks of `raymi.attacks.catalogue` on one batch.

On the CPU each attack is deterministic for a given seed and batch.
"""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raymi.attacks.catalogue import QUERIES, EvaluationAttack, Threat
from raymi.attacks.pgd import pgd
from raymi.attacks.projections import random_start
from raymi.attacks.untouched import untouched
from raymi.attacks.wasserstein import wasserstein_pgd
from raymi.counter_rng import random_key
from raymi.models.modes import FullPrecision, full_precision


@dataclass(frozen=True)
class Batch:
    """What is attacked: x (B, C, H, W) float32 in [0, 1], y (B,), index (B,) of the samples in
    their data set, a seed for all that is random."""

    x: Tensor
    y: Tensor
    index: Tensor
    seed: int


class Attacked(NamedTuple):
    """What an attack did to each sample: `broken` (B,), misclassified by what counts; `usable`
    (B,), x_adv is an image at all; `x_adv` (B, C, H, W); `prediction` (B,), the class of x_adv, see
    `predicted`; `linf` and `l2` (B,), its distance."""

    broken: Tensor
    usable: Tensor
    x_adv: Tensor
    prediction: Tensor
    linf: Tensor
    l2: Tensor


def run_attack(
    attack: EvaluationAttack,
    model: nn.Module,
    batch: Batch,
    threat: Threat,
    x_adv: Tensor | None = None,
) -> Attacked:
    """Attacks a batch; model and random state are afterwards as before.

    A sample is broken if x_adv is a finite image in [0, 1], within eps where the attack is bound to
    it, and not classified as y.

    Args: attack; model, images in [0, 1] to logits (B, K), in any mode, also of half
        precision; batch; threat; x_adv (B, C, H, W), where the attack was made before, on another
        model: None, it is made here.
    """
    answers = FullPrecision(model)
    with untouched(answers, batch.seed):
        if x_adv is None:
            x_adv = _perturbed(attack, answers, batch, threat)
        prediction = predicted(answers, x_adv)
    delta = (x_adv - batch.x).flatten(1)
    linf, l2 = delta.abs().amax(dim=1), delta.norm(dim=1)
    usable = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)  # not so where it is not a number
    counts = usable
    if attack.in_ball:
        eps = _allowed(attack, batch, threat).eps
        distance = linf if threat.norm == "linf" else l2
        counts = usable & (distance <= eps * (1 + 1e-5) + 2.0**-23)  # rounding of x + delta
    return Attacked((prediction != batch.y) & counts, usable, x_adv, prediction, linf, l2)


def _perturbed(attack: EvaluationAttack, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
    if not len(batch.x):
        return batch.x
    with torch.enable_grad():
        return attack.function(model, batch, _allowed(attack, batch, threat)).detach()


def _allowed(attack: EvaluationAttack, batch: Batch, threat: Threat) -> Threat:
    return threat.times(attack.radius, math.prod(batch.x.shape[1:]))


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """Classes (B,) of images (B, C, H, W); -1, which is no class, where a logit is not a number or
    the largest one is not finite (-inf in others rules these classes out)."""
    if not len(x):
        return torch.zeros(0, dtype=torch.int64, device=x.device)
    with torch.no_grad():
        highest, classes = full_precision(model(x)).max(dim=1)  # of which one is NaN: NaN
    return classes.masked_fill(~highest.isfinite(), -1)


def pgd_with_restarts(
    model: nn.Module, batch: Batch, threat: Threat, steps: int, restarts: int, step_per_eps: float
) -> Tensor:
    """From random points; restarts are for the samples that withstood so far."""
    x_adv, left = batch.x.clone(), torch.ones_like(batch.y, dtype=torch.bool)
    for restart in range(restarts):
        x, y, index = batch.x[left], batch.y[left], batch.index[left]
        start = random_start(
            x, threat.eps, threat.norm, random_key(batch.seed, "pgd", restart), index
        )
        found = pgd(
            model, x, y, eps=threat.eps, alpha=step_per_eps * threat.eps, steps=steps,
            norm=threat.norm, start=start,
        )  # fmt: skip
        x_adv[left] = found
        made = found.isfinite().flatten(1).all(1)  # else gradients were not finite: once more
        left[left.clone()] = ~made | (predicted(model, found) == y)
        if not left.any():
            break
    return x_adv


def fgsm(model: nn.Module, batch: Batch, threat: Threat, step_per_eps: float) -> Tensor:
    alpha = step_per_eps * threat.eps
    return pgd(model, batch.x, batch.y, eps=threat.eps, alpha=alpha, steps=1, norm=threat.norm)


def fwa(model: nn.Module, batch: Batch, threat: Threat, **settings: Any) -> Tensor:
    return wasserstein_pgd(model, batch.x, batch.y, eps=threat.eps, **settings)


def ti_dim(model: nn.Module, batch: Batch, threat: Threat, **settings: Any) -> Tensor:
    import torchattacks

    return torchattacks.TIFGSM(model, eps=threat.eps, **settings)(batch.x, batch.y)


def auto_attack(
    model: nn.Module, batch: Batch, threat: Threat, part: str, version: str, queries: int = QUERIES
) -> Tensor:
    """One part of AutoAttack, with the settings of a version of it, on the whole batch at once."""
    from pyautoattack import AutoAttack

    whole = AutoAttack(
        model,
        norm={"linf": "Linf", "l2": "L2"}[threat.norm],
        eps=threat.eps,
        seed=batch.seed,
        version=version,
        device=batch.x.device,
    )
    whole.attacks_to_run = [part]
    # What it remarks of a network at each call, raymi's checks say once.
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    whole.square.n_queries = queries
    tracer = sys.gettrace()  # of a debugger; the reference sets and forgets its own
    with torch.no_grad():
        others = model(batch.x[:1]).shape[1] - 1  # classes that a sample can be taken for
    for targeted in (whole.apgd_targeted, whole.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, others)
    try:
        x_adv, _ = whole.run_standard_evaluation(batch.x, batch.y, batch_size=len(batch.x))
    finally:
        sys.settrace(tracer)
    return x_adv


def foolbox_attack(
    model: nn.Module, batch: Batch, threat: Threat, attack: str, **settings: Any
) -> Tensor:
    """A foolbox attack for the nearest adversarial sample, whatever its distance."""
    import foolbox

    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=batch.x.device)
    x_adv, _, _ = getattr(foolbox.attacks, attack)(**settings)(
        bounded, batch.x, batch.y, epsilons=None
    )
    return x_adv
