"""The attacks that evaluation knows by name, behind one call.

AutoAttack's parts are the reference code (pyautoattack), DDN and CW are foolbox's, TI-DIM is
torchattacks'; PGD, FGSM and FWA are ours. On the CPU each is deterministic for a given seed and
batch.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raymi.attacks.pgd import pgd
from raymi.attacks.projections import random_start
from raymi.attacks.untouched import untouched
from raymi.attacks.wasserstein import wasserstein_pgd
from raymi.counter_rng import random_key
from raymi.errors import UserError, did_you_mean
from raymi.formatting import shown
from raymi.models.modes import FullPrecision, full_precision


@dataclass(frozen=True)
class Threat:
    """What an adversary may do: `norm` "linf" or "l2", radius `eps` in pixel units."""

    norm: str
    eps: float

    def times(self, radius: float, num_values: int) -> Threat:
        """The same with a multiple of eps, or with what allows any image of so many values."""
        everything = 1.0 if self.norm == "linf" else math.sqrt(num_values)
        return replace(self, eps=min(radius * self.eps, everything))


@dataclass(frozen=True)
class Batch:
    """What is attacked: x (B, C, H, W) float32 in [0, 1], y (B,), index (B,) of the samples in
    their data set, a seed for all that is random."""

    x: Tensor
    y: Tensor
    index: Tensor
    seed: int


_QUERIES = 5000  # of Square, in every version of AutoAttack

Craft = Callable[[nn.Module, Batch, Threat], Tensor]
"""Makes x_adv (B, C, H, W)."""


@dataclass(frozen=True)
class EvaluationAttack:
    """An attack by its name.

    `settings` are all that its outcome depends on beside the threat; `norms` those that it is
    defined for; `least_classes` how many the classifier must tell apart; `colour_only`, it takes
    images of 3 channels; `in_ball`, its samples obey the threat: what is outside does not count;
    `radius`, times the threat's eps, is how far it may go (at most anywhere); `by_gradient`, it
    needs a network that autograd follows.
    """

    name: str
    craft: Craft
    settings: Mapping[str, Any] = field(default_factory=dict)
    norms: tuple[str, ...] = ("linf", "l2")
    least_classes: int = 2
    colour_only: bool = False
    in_ball: bool = True
    radius: float = 1.0
    by_gradient: bool = True

    def problem(self, threat: Threat, num_classes: int, channels: int) -> str | None:
        """Why it cannot be used, in words; None where it can."""
        if threat.norm not in self.norms:
            return f"{self.name} is an attack in {' and '.join(self.norms)}, not in {threat.norm}"
        if num_classes < self.least_classes:
            return f"{self.name} needs at least {self.least_classes} classes, got {num_classes}"
        if self.colour_only and channels != 3:
            return f"{self.name} needs images of 3 channels, got {channels}"
        return None


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
            x_adv = _crafted(attack, answers, batch, threat)
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


def _crafted(attack: EvaluationAttack, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
    if not len(batch.x):
        return batch.x
    with torch.enable_grad():
        return attack.craft(model, batch, _allowed(attack, batch, threat)).detach()


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


def find_attack(name: str) -> EvaluationAttack:
    """The attack of a name: one of `ATTACKS`, or `pgd-N` with N steps, `pgd-NxR` with R restarts;
    each also with `@2eps` after it, at another radius, or `@any`, where any image is allowed.

    Raises: UserError with what there is.
    """
    plain, at, radius = name.partition("@")
    if at:
        multiple = re.fullmatch(r"(\d{1,4}(?:\.\d{1,9})?)eps", radius)
        if multiple is None and radius != "any":
            raise UserError(f"attack {shown(name)}: expected a radius such as @2eps, or @any")
        times = float(multiple[1]) if multiple else math.inf
        attack = find_attack(plain)
        return replace(attack, name=name, radius=times)
    if name in ATTACKS:
        return ATTACKS[name]
    found = re.fullmatch(r"pgd-([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", name, re.ASCII)
    if found is None:
        known = [*ATTACKS, "pgd-N", "pgd-NxR"]
        raise UserError(f"unknown attack {shown(name)}: {did_you_mean(name, known)}")
    settings = {"steps": int(found[1]), "restarts": int(found[2] or 1), "step_per_eps": 0.25}
    return _with(name, _pgd, settings)


def _pgd(
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


def _fgsm(model: nn.Module, batch: Batch, threat: Threat, step_per_eps: float) -> Tensor:
    alpha = step_per_eps * threat.eps
    return pgd(model, batch.x, batch.y, eps=threat.eps, alpha=alpha, steps=1, norm=threat.norm)


def _fwa(model: nn.Module, batch: Batch, threat: Threat, **settings: Any) -> Tensor:
    return wasserstein_pgd(model, batch.x, batch.y, eps=threat.eps, **settings)


def _ti_dim(model: nn.Module, batch: Batch, threat: Threat, **settings: Any) -> Tensor:
    import torchattacks

    return torchattacks.TIFGSM(model, eps=threat.eps, **settings)(batch.x, batch.y)


def _auto_attack(
    model: nn.Module, batch: Batch, threat: Threat, part: str, version: str, queries: int = _QUERIES
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


def _foolbox(
    model: nn.Module, batch: Batch, threat: Threat, attack: str, **settings: Any
) -> Tensor:
    """A foolbox attack for the nearest adversarial sample, whatever its distance."""
    import foolbox

    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=batch.x.device)
    x_adv, _, _ = getattr(foolbox.attacks, attack)(**settings)(
        bounded, batch.x, batch.y, epsilons=None
    )
    return x_adv


def _part(name: str, part: str, version: str, least_classes: int = 2) -> EvaluationAttack:
    settings = {"part": part, "version": version}
    return _with(name, _auto_attack, settings, least_classes=least_classes)


def _with(
    name: str, craft: Callable[..., Tensor], settings: dict[str, Any], **what: Any
) -> EvaluationAttack:
    return EvaluationAttack(name, partial(craft, **settings), settings, **what)


_SQUARE = {"part": "square", "version": "standard"}
ATTACKS: dict[str, EvaluationAttack] = {
    attack.name: attack
    for attack in (
        _with("fgsm", _fgsm, {"step_per_eps": 1.0}),
        _part("apgd-ce", "apgd-ce", "standard"),
        _part("apgd-dlr", "apgd-dlr", "standard", least_classes=3),
        _part("apgd-t", "apgd-t", "standard", least_classes=4),
        _part("fab-t", "fab-t", "standard"),
        _with("square", _auto_attack, _SQUARE | {"queries": _QUERIES}, by_gradient=False),
        _with("square-1000", _auto_attack, _SQUARE | {"queries": 1000}, by_gradient=False),
        _part("apgd-ce-plus", "apgd-ce", "plus"),
        _part("apgd-dlr-plus", "apgd-dlr", "plus", least_classes=3),
        _part("fab-plus", "fab", "plus"),
        _part("apgd-ce-rand", "apgd-ce", "rand"),
        _part("apgd-dlr-rand", "apgd-dlr", "rand", least_classes=3),
        _with(
            "fwa-40",
            _fwa,
            {"steps": 40, "step_size": 0.007, "kernel": 4, "iterations": 15},
            norms=("linf",),
            in_ball=False,
        ),
        _with(
            "ti-dim",
            _ti_dim,
            {
                "steps": 40, "alpha": 0.007, "decay": 0.1, "kernel_name": "gaussian",
                "len_kernel": 15, "nsig": 3, "diversity_prob": 0.5, "resize_rate": 0.9,
                "random_start": False,
            },
            norms=("linf",),
            colour_only=True,
        ),
        _with(
            "cw",
            _foolbox,
            {
                "attack": "L2CarliniWagnerAttack", "binary_search_steps": 4, "steps": 20,
                "stepsize": 0.01, "abort_early": False, "initial_const": 1e-3, "confidence": 0.0,
            },
            norms=("l2",),
        ),
        _with(
            "ddn",
            _foolbox,
            {"attack": "DDNAttack", "steps": 20, "gamma": 0.05, "init_epsilon": 1.0},
            norms=("l2",),
        ),
    )
}  # fmt: skip
