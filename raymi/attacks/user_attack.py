"""User's own attack, named on the command line as `package.module:function`.

The function is called as `attack(model, x, y, eps=..., norm=..., generator=...)` and returns
x_adv. Results that the threat does not allow stop the evaluation: they are defects of the attack,
and counting them as robust would flatter the classifier.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from raymi.attacks.catalogue import EvaluationAttack, Threat, run_function
from raymi.attacks.execution import Batch
from raymi.attacks.projections import largest_distance
from raymi.attacks.untouched import differing
from raymi.errors import UserError
from raymi.models.user_model import source_digest
from raymi.own_code import import_function


def user_attack(name: str) -> EvaluationAttack:
    """Returns the attack of a user's function.

    Args:
        name: `package.module:function`.

    Raises:
        UserError: The function cannot be imported.
    """
    import_attack(name)
    digest = _digest(name)
    return EvaluationAttack(
        name,
        partial(run_function, "user_attack.call_user_attack", name=name, digest=digest),
        by_gradient=False,  # unknown
        inputs={name: digest},
    )


def call_user_attack(
    model: nn.Module, batch: Batch, threat: Threat, name: str, digest: str
) -> Tensor:
    """Calls the user's function on copies of the images, and checks what it returns.

    Raises:
        UserError: The source has changed, the function changed the model, or `check_x_adv`.
    """
    if _digest(name) != digest:
        raise UserError(
            f"attack {name!r}: its file has changed since the evaluation began, or differs between "
            "nodes: start again; every node must see the same file"
        )
    parameters = {key: value.clone() for key, value in model.named_parameters()}
    modes = {key: module.training for key, module in model.named_modules()}
    x_adv = adversarial_images(name, model, batch.x, batch.y, threat, batch.seed)
    changed = differing(parameters, dict(model.named_parameters()))
    changed += [
        f"the mode of {key or 'the network'}"
        for key, module in model.named_modules()
        if module.training != modes.get(key)
    ]
    if changed:
        raise UserError(
            f"attack {name!r} changed {', '.join(changed[:3])}: an attack must leave the model as "
            "it is, let it change a copy.deepcopy(model)"
        )
    return x_adv


def import_attack(name: str) -> Callable[..., Tensor]:
    """Imports the user's function.

    Raises:
        UserError: It is missing, or does not take the arguments of an attack.
    """
    attack = import_function(name, "attack")
    try:
        inspect.signature(attack).bind(None, None, None, eps=0.1, norm="linf", generator=None)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"attack {name!r}: the function is called with model, x, y, eps=, norm= and "
            f"generator=, {error}"
        ) from error
    return attack


def adversarial_images(
    name: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int
) -> Tensor:
    """Calls the user's function on copies of images (B, C, H, W) and labels (B,).

    Args:
        name: `package.module:function`.
        model: images in [0, 1] to logits.
        x: images in [0, 1].
        y: labels.
        threat: norm and radius.
        seed: of the function's generator.

    Returns:
        x_adv (B, C, H, W), float32.

    Raises:
        UserError: As in `check_x_adv`.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    x_adv = import_attack(name)(
        model, x.clone(), y.clone(), eps=threat.eps, norm=threat.norm, generator=generator
    )
    check_x_adv(name, x, x_adv, threat)
    return x_adv.detach().float()


def _digest(name: str) -> str:
    return source_digest(name) or "none"  # built in


def check_x_adv(name: str, x: Tensor, x_adv: object, threat: Threat) -> None:
    """Checks the result of an attack.

    Args:
        name: of the attack, for the message.
        x: (B, C, H, W) images in [0, 1].
        x_adv: its result.
        threat: norm and radius that it was given.

    Raises:
        UserError: x_adv is not a floating tensor of x's shape on x's device, not finite, outside
            of [0, 1], or further from x than the radius.
    """

    def refusal(problem: str, remedy: str) -> UserError:
        return UserError(f"attack {name!r} must return x_adv {tuple(x.shape)}, {problem}: {remedy}")

    if not isinstance(x_adv, Tensor):
        raise refusal(f"got {type(x_adv).__name__}", "return a tensor")
    if x_adv.shape != x.shape or not x_adv.is_floating_point():
        raise refusal(f"got {tuple(x_adv.shape)} of {x_adv.dtype}", "keep the shape of x, in float")
    if x_adv.device != x.device:
        raise refusal(f"got it on {x_adv.device} for x on {x.device}", "keep the device of x")
    if not len(x):
        return
    x_adv = x_adv.detach().float()
    if num := int((~x_adv.isfinite()).flatten(1).any(1).sum()):
        raise refusal(
            f"got NaN or infinity in {num} of {len(x)} images",
            "a gradient may be undefined, use x.grad.nan_to_num()",
        )
    low, high = float(x_adv.min()), float(x_adv.max())
    if low < 0 or high > 1:
        raise refusal(f"got values in [{low:.4g}, {high:.4g}]", "end with x_adv.clamp(0, 1)")
    order = torch.inf if threat.norm == "linf" else 2
    distance = float((x_adv - x).flatten(1).norm(p=order, dim=1).max())
    if distance > largest_distance(threat.eps):
        raise refusal(
            f"got an image at {threat.norm} distance {distance:.4g} with eps={threat.eps:.4g}",
            "project x_adv into the ball around x",
        )
