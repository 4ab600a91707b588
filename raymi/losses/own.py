"""User's own loss, named as `package.module:name`, and its checks before any long work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raymi.errors import UserError, what_happened
from raymi.losses.base import AdversarialLoss
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
    from torch import Tensor

    from raymi.collectives import Shard


def own_loss(name: str, settings: dict[str, Any]) -> AdversarialLoss:
    """Builds a user's own loss; of an object, a copy.

    Args:
        name: `package.module:name` of a subclass of `AdversarialLoss`, or of an object of one.
        settings: given settings of `loss`.

    Raises:
        UserError: see `loss_of`.
    """
    return copy.deepcopy(loss_of(name, import_function(name, "loss"), settings))


def loss_of(name: str, found: object, settings: dict[str, Any]) -> AdversarialLoss:
    """Returns the user's object, or builds one of the user's class.

    Args:
        name: of the loss, for messages.
        found: a subclass of `AdversarialLoss`, or an object of one.
        settings: given settings of `loss`.

    Raises:
        UserError: it is another thing, or does not take the settings.
    """
    if isinstance(found, AdversarialLoss):
        if settings:
            raise _error(name, f"has its settings already, got {', '.join(settings)}: remove them")
        return found
    if not (isinstance(found, type) and issubclass(found, AdversarialLoss)):
        raise _error(
            name, f"must be a subclass of raymi.losses.AdversarialLoss, got {kind_of(found)}: {SEE}"
        )
    try:
        return found(**settings)
    except (Exception, SystemExit) as error:
        raise _error(name, f"cannot be built, {what_happened(error)}") from error


def check_loss(name: str, loss: AdversarialLoss, num_classes: int) -> None:
    """Computes a copy of a loss on random outputs of a small batch.

    Args:
        name: of the loss, for messages.
        loss: stays unchanged.
        num_classes: K.

    Raises:
        UserError: the loss fails, its value or gradient cannot be trained with, its mean over
            workers depends on their number, or its state cannot be kept in a checkpoint.
    """
    import torch

    from raymi.collectives import Shard

    def refusal(problem: str) -> UserError:
        return _error(name, problem)

    if loss.attack_objective not in ("ce", "kl"):
        raise refusal(f"must have attack_objective ce or kl, got {loss.attack_objective!r}")
    loss, generator = copy.deepcopy(loss), torch.Generator().manual_seed(0)
    z, z_adv = torch.randn(2, NUM, num_classes, generator=generator)
    z = z if loss.needs_clean_gradient else z[:, :0]
    y = torch.arange(NUM) % num_classes
    with torch.random.fork_rng([]):
        check_shards(refusal, lambda rows, shard: _value(refusal, loss, z, z_adv, y, rows, shard))
        if loss.takes_soft_targets:
            probabilities = torch.rand(NUM, num_classes, generator=generator).softmax(dim=1)
            _value(refusal, loss, z, z_adv, probabilities, slice(NUM), Shard.alone(NUM))
        try:
            loss.observe(z.detach(), z_adv.detach(), y, Shard.alone(NUM))
        except Exception as error:
            raise refusal(f"fails in observe, {what_happened(error)}: {SEE}") from error
        check_state(refusal, loss)


def _value(
    refusal: Callable[[str], UserError],
    loss: AdversarialLoss,
    z: Tensor,
    z_adv: Tensor,
    y: Tensor,
    rows: slice,
    shard: Shard,
) -> Tensor:
    """Returns the value of the loss on rows of a batch, 0-d, once it and gradients are sound."""
    z, z_adv = z[rows].clone().requires_grad_(), z_adv[rows].clone().requires_grad_()
    where = f"must map logits {tuple(z.shape)}, {tuple(z_adv.shape)} and labels"
    try:
        value = loss(z, z_adv, y[rows], shard)
    except CollectiveUsed:
        raise
    except (Exception, SystemExit) as error:
        raise refusal(f"{where} to a loss, but {what_happened(error)}: {SEE}") from error
    outputs = [z, z_adv] if loss.needs_clean_gradient else [z_adv]
    return check_value(refusal, where, value, outputs)


def _error(name: str, problem: str) -> UserError:
    return UserError(f"loss {name!r} {problem}")
