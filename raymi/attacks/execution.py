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
from raymi.attacks.projections import largest_distance, random_start
from raymi.attacks.untouched import untouched
from raymi.attacks.wasserstein import wasserstein_pgd
from raymi.counter_rng import random_key
from raymi.models.modes import FullPrecision, full_precision


@dataclass(frozen=True)
class Batch:
    """Samples to attack.

    Args:
        x: (B, C, H, W) float32 images in [0, 1].
        y: (B,) labels.
        index: (B,) indices of the samples in their data set.
        seed: seed of all random numbers.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    seed: int


class Attacked(NamedTuple):
    """Outcome of an attack for each sample.

    Args:
        broken: (B,) bool, misclassified by a valid adversarial sample.
        usable: (B,) bool, x_adv is a finite image in [0, 1].
        x_adv: (B, C, H, W) adversarial samples.
        prediction: (B,) classes of x_adv, see `predicted`.
        linf: (B,) distances from x in L_inf.
        l2: (B,) distances from x in L2.
    """

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
    """Attacks a batch; leaves model and random state unchanged.

    A sample is broken if x_adv is a finite image in [0, 1], within eps if the attack has that
    bound, and not classified as y.

    Args:
        attack: attack to run.
        model: maps images in [0, 1] to logits (B, K), in any mode, also in half precision.
        batch: samples to attack.
        threat: norm and radius.
        x_adv: (B, C, H, W) samples of an earlier attack on another model; None: run the attack.

    Returns:
        The outcome for each sample.
    """
    answers = FullPrecision(model)
    with untouched(answers, batch.seed):
        if x_adv is None:
            x_adv = _perturbed(attack, answers, batch, threat)
        prediction = predicted(answers, x_adv)
    delta = (x_adv - batch.x).flatten(1)
    linf, l2 = delta.abs().amax(dim=1), delta.norm(dim=1)
    usable = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)  # False for NaN
    counts = usable
    if attack.in_ball:
        eps = _allowed(attack, batch, threat).eps
        distance = linf if threat.norm == "linf" else l2
        counts = usable & (distance <= largest_distance(eps))
    return Attacked((prediction != batch.y) & counts, usable, x_adv, prediction, linf, l2)


def _perturbed(attack: EvaluationAttack, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
    if not len(batch.x):
        return batch.x
    with torch.enable_grad():
        return attack.function(model, batch, _allowed(attack, batch, threat)).detach()


def _allowed(attack: EvaluationAttack, batch: Batch, threat: Threat) -> Threat:
    return threat.times(attack.radius, math.prod(batch.x.shape[1:]))


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """Returns classes (B,) of images (B, C, H, W); -1 for NaN or an infinite largest logit.

    A logit of -inf excludes its class only.
    """
    if not len(x):
        return torch.zeros(0, dtype=torch.int64, device=x.device)
    with torch.no_grad():
        highest, classes = full_precision(model(x)).max(dim=1)  # NaN if one is NaN
    return classes.masked_fill(~highest.isfinite(), -1)


def pgd_with_restarts(
    model: nn.Module, batch: Batch, threat: Threat, steps: int, restarts: int, step_per_eps: float
) -> Tensor:
    """Runs PGD from random points; each restart attacks the samples not broken yet."""
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
        finite = found.isfinite().flatten(1).all(1)  # else gradients were not finite: retry
        left[left.clone()] = ~finite | (predicted(model, found) == y)
        if not left.any():
            break
    return x_adv


def fgsm(model: nn.Module, batch: Batch, threat: Threat, step_per_eps: float) -> Tensor:
    """Takes one signed gradient step from the image (Goodfellow et al. 2015)."""
    alpha = step_per_eps * threat.eps
    return pgd(model, batch.x, batch.y, eps=threat.eps, alpha=alpha, steps=1, norm=threat.norm)


def fwa(model: nn.Module, batch: Batch, threat: Threat, **settings: Any) -> Tensor:
    """Attacks in a Wasserstein ball (Wu et al. 2020), see `wasserstein_pgd`."""
    return wasserstein_pgd(model, batch.x, batch.y, eps=threat.eps, **settings)


def ti_dim(model: nn.Module, batch: Batch, threat: Threat, **settings: Any) -> Tensor:
    """Runs TI-DIM, the translation-invariant attack (Dong et al. 2019), of torchattacks."""
    import torchattacks

    return torchattacks.TIFGSM(model, eps=threat.eps, **settings)(batch.x, batch.y)


def auto_attack(
    model: nn.Module, batch: Batch, threat: Threat, part: str, version: str, queries: int = QUERIES
) -> Tensor:
    """Runs one part of a version of AutoAttack on the whole batch."""
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
    # it warns of properties of the network in each call; raymi.evaluation checks them once
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    whole.square.n_queries = queries
    tracer = sys.gettrace()  # of a debugger; the reference code replaces it
    with torch.no_grad():
        others = model(batch.x[:1]).shape[1] - 1  # wrong classes
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
    """Runs a foolbox attack that minimises the distance, without a bound on it."""
    import foolbox

    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=batch.x.device)
    x_adv, _, _ = getattr(foolbox.attacks, attack)(**settings)(
        bounded, batch.x, batch.y, epsilons=None
    )
    return x_adv
