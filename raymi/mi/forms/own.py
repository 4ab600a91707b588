"""User's own MI term, named as `package.module:name`, and its checks before any long work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raymi.errors import UserError, what_happened
from raymi.losses.base import AdversarialLoss
from raymi.mi.forms.base import MITerm, TermContext
from raymi.objective_check import (
    NUM,
    SEE,
    CollectiveUsed,
    check_shards,
    check_state,
    check_value,
    kind_of,
)
from raymi.own_code import import_function

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raymi.collectives import Shard


def own_term(form: str) -> MITerm | type[MITerm]:
    """Imports a user's own term.

    Args:
        form: `package.module:name` of a subclass of `MITerm`, or of an object of one.

    Raises:
        UserError: it cannot be imported, is another thing, or needs raymi's estimators.
    """
    found: Any = import_function(form, "MI term")
    if not (isinstance(found, MITerm) or (isinstance(found, type) and issubclass(found, MITerm))):
        raise _error(
            form, f"must be a subclass of raymi.mi.forms.MITerm, got {kind_of(found)}: {SEE}"
        )
    if found.uses_estimators:
        raise _error(form, "cannot have raymi's estimators: build its own in build(context)")
    return found


def build_own_term(context: TermContext) -> MITerm:
    """Builds a user's own term; of an object, a copy.

    Raises:
        UserError: see `own_term`; or the class cannot be built.
    """
    form = context.mi.form
    found = own_term(form)
    if isinstance(found, MITerm):
        return copy.deepcopy(found)
    try:
        term: object = found.build(context)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _error(form, f"cannot be built, {what_happened(error)}") from error
    if not isinstance(term, MITerm):
        raise _error(form, f"must return a term from build(context), got {kind_of(term)}")
    return term


def check_term(
    form: str,
    term: MITerm,
    num_classes: int,
    image_size: int,
    loss: AdversarialLoss,
    device: torch.device | None = None,
) -> None:
    """Computes a copy of a term on random images and outputs of a small batch.

    Args:
        form: name of the term, for messages.
        term: as built for a phase; stays unchanged.
        num_classes: K.
        image_size: side in pixels.
        loss: adversarial loss beside it.
        device: of the term's networks; None: the CPU.

    Raises:
        UserError: the term fails, its value or gradient cannot be trained with, its mean over
            workers depends on their number, its target does not fit the loss, or its state cannot
            be kept in a checkpoint.
    """
    import torch

    def refusal(problem: str) -> UserError:
        return _error(form, problem)

    term, generator = copy.deepcopy(term), torch.Generator().manual_seed(0)
    x, x_adv = torch.rand(2, NUM, 3, image_size, image_size, generator=generator).to(device)
    z, z_adv = torch.randn(2, NUM, num_classes, generator=generator).to(device)
    z = z if term.needs_clean or term.needs_clean_gradient else z[:, :0]
    y = (torch.arange(NUM) % num_classes).to(device)

    def value_of(rows: slice, shard: Shard) -> Tensor:
        logits, logits_adv = (one[rows].clone().requires_grad_() for one in (z, z_adv))
        where = "must map images, logits and labels"
        try:
            target = term.target(x[rows], y[rows], shard)
            value, metrics = term(x[rows], x_adv[rows], logits, logits_adv, y[rows], shard)
        except CollectiveUsed:
            raise
        except (Exception, SystemExit) as error:
            raise refusal(
                f"{where} to a loss and metrics, but {what_happened(error)}: {SEE}"
            ) from error
        _check_target(refusal, target, y[rows], num_classes, loss)
        if not isinstance(metrics, dict) or any(m.requires_grad for m in metrics.values()):
            raise refusal(f"must return a loss and a dict of detached metrics: {SEE}")
        if value is None:
            return torch.zeros(())
        return check_value(
            refusal, where, value, [logits_adv, logits] if z.shape[1] else [logits_adv]
        )

    with torch.random.fork_rng([]):
        check_shards(refusal, value_of)
        check_state(refusal, term)


def _check_target(
    refusal: Callable[[str], UserError],
    target: object,
    y: Tensor,
    num_classes: int,
    loss: AdversarialLoss,
) -> None:
    """Checks the shape of a target, labels (b,) or probabilities (b, K)."""
    shape = tuple(getattr(target, "shape", ()))
    soft = (len(y), num_classes)
    if shape not in (tuple(y.shape), soft):
        raise refusal(
            f"must return a target of shape {tuple(y.shape)} or {soft}, got {shape}: {SEE}"
        )
    if shape == soft and not loss.takes_soft_targets:
        raise refusal("returns soft targets, but the loss takes labels: set loss.base=at")


def _error(form: str, problem: str) -> UserError:
    return UserError(f"MI term {form!r} {problem}")
