"""Optimiser of the classifier with its schedule: SGD, AdamW, or the user's own."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raymi.config import OptimConfig
from raymi.engine.learner import Learner
from raymi.engine.schedules import build_schedule
from raymi.errors import UserError, what_happened
from raymi.own_code import import_function
from raymi.random_state import random_state_kept

_TOTAL = 4  # steps of the check


def build_optimizer(
    model: nn.Module, optim: OptimConfig, total_steps: int
) -> tuple[Optimizer, LRScheduler]:
    """Builds the optimiser of a model's parameters and its schedule over `total_steps` steps.

    Raises:
        UserError: The user's own optimiser fails, or cannot be resumed exactly.
    """
    if ":" in optim.name:
        _check(model, optim)
    optimizer = _optimizer(list(model.parameters()), optim)
    return optimizer, build_schedule(optimizer, optim, total_steps)


def _optimizer(parameters: list[nn.Parameter], optim: OptimConfig) -> Optimizer:
    if optim.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=optim.lr,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
            weight_decay=optim.weight_decay,
        )
    if optim.name == "adamw":
        return torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
    build = import_function(optim.name, "optimiser")
    try:
        optimizer = build(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
    except (Exception, SystemExit) as error:
        raise _error(
            optim, "take parameters, lr= and weight_decay=", what_happened(error)
        ) from error
    if not isinstance(optimizer, Optimizer):
        raise _error(optim, "return a torch.optim.Optimizer", f"got {type(optimizer).__name__}")
    return optimizer


def _check(model: nn.Module, optim: OptimConfig) -> None:
    """Steps copies of a model's parameters with the user's optimiser, with and without a resume.

    Raises:
        UserError: It fails, trains nothing, or steps otherwise after its state was saved and
            loaded as a checkpoint is.
    """
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with random_state_kept(0, devices):
        one = _learner(model.parameters(), optim)
        before = [p.detach().clone() for p in one.task.parameters()]
        _step(one, optim, 0)
        after = [p.detach().clone() for p in one.task.parameters()]
        if all(torch.equal(old, new) for old, new in zip(before, after, strict=True)):
            raise _error(optim, "change the parameters in step()", "which stay as they are")
        saved = io.BytesIO()
        torch.save(one.state_dict(), saved)
        saved.seek(0)
        other = _learner(one.task.parameters(), optim)
        try:
            other.load_state_dict(torch.load(saved, weights_only=True))
        except Exception as error:
            raise _error(
                optim,
                "have a state_dict of tensors and plain values that weights_only=True loads",
                what_happened(error),
            ) from error
        for learner in (one, other):
            _step(learner, optim, 1)
        pairs = zip(one.task.parameters(), other.task.parameters(), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            raise _error(
                optim,
                "keep all that its steps depend on in state_dict()['state']",
                "but after a resume it steps otherwise (settings in param_groups are not kept)",
            )


def _learner(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> Learner:
    """Returns a learner of copies of parameters."""
    copies = nn.ParameterList([copy.deepcopy(p.detach()).requires_grad_() for p in parameters])
    optimizer = _optimizer(list(copies), optim)
    return Learner(copies, optimizer, build_schedule(optimizer, optim, _TOTAL))


def _step(learner: Learner, optim: OptimConfig, number: int) -> None:
    """Makes a step with the gradients of number `number`, the same for every learner."""
    for place, parameter in enumerate(learner.task.parameters()):
        generator = torch.Generator().manual_seed(1000 * number + place)
        shape, dtype = parameter.shape, parameter.dtype
        parameter.grad = torch.randn(shape, generator=generator, dtype=dtype).to(parameter.device)
    try:
        torch.manual_seed(number)
        learner.update()
    except (Exception, SystemExit) as error:
        raise _error(optim, "make a step without arguments", what_happened(error)) from error


def _error(optim: OptimConfig, expected: str, problem: str) -> UserError:
    return UserError(
        f"optimiser {optim.name!r} must {expected}, {problem}: see docs/extending.md, or set "
        "optim.name=adamw"
    )
