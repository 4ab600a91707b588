"""Attacks that evaluation knows by name, with their settings, without torch.

AutoAttack's parts are the reference code (pyautoattack), DDN and CW are foolbox's, TI-DIM is
torchattacks'; PGD, FGSM and FWA are raymi's own. `raymi.attacks.execution` runs them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from raymi.errors import UserError, did_you_mean
from raymi.formatting import shown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raymi.attacks.execution import Batch


@dataclass(frozen=True)
class Threat:
    """Threat model.

    Args:
        norm: "linf" or "l2".
        eps: radius of the perturbation, in pixel units.
    """

    norm: str
    eps: float

    def times(self, radius: float, num_values: int) -> Threat:
        """Returns the threat at `radius` times eps, at most the radius that reaches every image.

        Args:
            radius: multiple of eps.
            num_values: numbers in an image.
        """
        everything = 1.0 if self.norm == "linf" else math.sqrt(num_values)
        return replace(self, eps=min(radius * self.eps, everything))


QUERIES = 5000  # of Square, in every version of AutoAttack

AttackFunction = Callable[["nn.Module", "Batch", Threat], "Tensor"]
"""Function of a model, a batch and a threat that returns x_adv (B, C, H, W)."""


@dataclass(frozen=True)
class EvaluationAttack:
    """Attack of an evaluation.

    Args:
        name: name in suites, reports and metrics.
        function: implementation.
        settings: all parameters that the outcome depends on, besides the threat.
        norms: norms that the attack is defined for.
        least_classes: minimum number of classes.
        colour_only: requires images of 3 channels.
        in_ball: samples outside of the ball do not count.
        radius: radius as a multiple of the threat's eps; inf: any image.
        by_gradient: requires a network that is differentiable by autograd.
        inputs: SHA-256 of the files that the outcome depends on, by name.
    """

    name: str
    function: AttackFunction
    settings: Mapping[str, Any] = field(default_factory=dict)
    norms: tuple[str, ...] = ("linf", "l2")
    least_classes: int = 2
    colour_only: bool = False
    in_ball: bool = True
    radius: float = 1.0
    by_gradient: bool = True
    inputs: Mapping[str, str] = field(default_factory=dict)

    def problem(self, threat: Threat, num_classes: int, channels: int) -> str | None:
        """Returns why the attack cannot be used, or None if it can."""
        if threat.norm not in self.norms:
            return f"{self.name} is an attack in {' and '.join(self.norms)}, not in {threat.norm}"
        if num_classes < self.least_classes:
            return f"{self.name} needs at least {self.least_classes} classes, got {num_classes}"
        if self.colour_only and channels != 3:
            return f"{self.name} needs images of 3 channels, got {channels}"
        return None


def find_attack(name: str) -> EvaluationAttack:
    """Returns an attack by name.

    Names are keys of `ATTACKS`, `pgd-N` with N steps, `pgd-NxR` with R restarts, and
    `module:function` of the user; a suffix `@2eps` sets another radius, `@any` allows any image.

    Raises:
        UserError: The name is unknown, or the user's function cannot be imported.
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
    if ":" in name:
        from raymi.attacks.user_attack import user_attack

        return user_attack(name)
    found = re.fullmatch(r"pgd-([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", name, re.ASCII)
    if found is None:
        known = [*ATTACKS, "pgd-N", "pgd-NxR", "module:function"]
        raise UserError(f"unknown attack {shown(name)}: {did_you_mean(name, known)}")
    settings = {"steps": int(found[1]), "restarts": int(found[2] or 1), "step_per_eps": 0.25}
    return _attack(name, "pgd_with_restarts", settings)


def run_function(
    function: str, model: nn.Module, batch: Batch, threat: Threat, **settings: Any
) -> Tensor:
    """Calls `module.function` of `raymi.attacks`, importing torch on the first call."""
    module, _, name = function.rpartition(".")
    imported = import_module(f"raymi.attacks.{module or 'execution'}")
    return getattr(imported, name)(model, batch, threat, **settings)


def _attack(
    name: str, function: str, settings: dict[str, Any], **attributes: Any
) -> EvaluationAttack:
    return EvaluationAttack(
        name, partial(run_function, function, **settings), settings, **attributes
    )


def _part(name: str, part: str, version: str, least_classes: int = 2) -> EvaluationAttack:
    settings = {"part": part, "version": version}
    return _attack(name, "auto_attack", settings, least_classes=least_classes)


_SQUARE = {"part": "square", "version": "standard"}
ATTACKS: dict[str, EvaluationAttack] = {
    attack.name: attack
    for attack in (
        _attack("fgsm", "fgsm", {"step_per_eps": 1.0}),
        _part("apgd-ce", "apgd-ce", "standard"),
        _part("apgd-dlr", "apgd-dlr", "standard", least_classes=3),
        _part("apgd-t", "apgd-t", "standard", least_classes=4),
        _part("fab-t", "fab-t", "standard"),
        _attack("square", "auto_attack", _SQUARE | {"queries": QUERIES}, by_gradient=False),
        _attack("square-1000", "auto_attack", _SQUARE | {"queries": 1000}, by_gradient=False),
        _attack(
            "malt",
            "malt.malt",
            {"targets": 9, "candidates": 100, "steps": 100},
            least_classes=4,
        ),
        _part("apgd-ce-plus", "apgd-ce", "plus"),
        _part("apgd-dlr-plus", "apgd-dlr", "plus", least_classes=3),
        _part("fab-plus", "fab", "plus"),
        _part("apgd-ce-rand", "apgd-ce", "rand"),
        _part("apgd-dlr-rand", "apgd-dlr", "rand", least_classes=3),
        _attack(
            "fwa-40",
            "fwa",
            {"steps": 40, "step_size": 0.007, "kernel": 4, "iterations": 15},
            norms=("linf",),
            in_ball=False,
        ),
        _attack(
            "ti-dim",
            "ti_dim",
            {
                "steps": 40, "alpha": 0.007, "decay": 0.1, "kernel_name": "gaussian",
                "len_kernel": 15, "nsig": 3, "diversity_prob": 0.5, "resize_rate": 0.9,
                "random_start": False,
            },
            norms=("linf",),
            colour_only=True,
        ),
        _attack(
            "cw",
            "foolbox_attack",
            {
                "attack": "L2CarliniWagnerAttack", "binary_search_steps": 4, "steps": 20,
                "stepsize": 0.01, "abort_early": False, "initial_const": 1e-3, "confidence": 0.0,
            },
            norms=("l2",),
        ),
        _attack(
            "ddn",
            "foolbox_attack",
            {"attack": "DDNAttack", "steps": 20, "gamma": 0.05, "init_epsilon": 1.0},
            norms=("l2",),
        ),
    )
}  # fmt: skip
