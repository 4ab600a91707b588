"""User's own loss, named as `package.module:name`, and its checks before any long work."""

from __future__ import annotations

import copy
import io
from typing import TYPE_CHECKING, Any

from raymi.errors import UserError, what_happened
from raymi.losses.base import AdversarialLoss
from raymi.own_code import import_function

if TYPE_CHECKING:
    from torch import Tensor

    from raymi.collectives import Shard

_SEE = "see docs/extending.md"


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
            name, f"must be a subclass of raymi.losses.AdversarialLoss, got {_kind(found)}: {_SEE}"
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

    from raymi.collectives import Collectives, Shard

    class Unavailable(Collectives):
        """Group whose other workers do not exist."""

        def __getattribute__(self, name: str) -> Any:
            if name in ("gather", "sum", "max", "exchange"):
                raise _CollectiveUsed
            return super().__getattribute__(name)

    if loss.attack_objective not in ("ce", "kl"):
        raise _error(name, f"must have attack_objective ce or kl, got {loss.attack_objective!r}")
    loss, generator = copy.deepcopy(loss), torch.Generator().manual_seed(0)
    z, z_adv = torch.randn(2, 5, num_classes, generator=generator)
    z = z if loss.needs_clean_gradient else z[:, :0]
    y = torch.arange(5) % num_classes
    with torch.random.fork_rng([]):
        whole = _value(name, loss, z, z_adv, y, Shard.alone(5))
        parts = []
        for rank, rows in enumerate((slice(4), slice(4, 5))):
            group = Unavailable()
            group.rank, group.world_size = rank, 2
            shard = Shard((4, 1), group, torch.arange(5)[rows])
            try:
                parts.append(_value(name, loss, z[rows], z_adv[rows], y[rows], shard))
            except _CollectiveUsed:
                parts = [whole]  # only several processes can show it
                break
        if loss.takes_soft_targets:
            probabilities = torch.rand(5, num_classes, generator=generator).softmax(dim=1)
            _value(name, loss, z, z_adv, probabilities, Shard.alone(5))
        mean = torch.stack(parts).mean()
        if not torch.allclose(mean, whole, rtol=1e-4, atol=1e-5):
            raise _error(
                name,
                f"depends on the number of workers: {whole:.6g} on one, {mean:.6g} on two; return "
                "shard.mean(values) of (b,) values of samples",
            )
        try:
            loss.observe(z.detach(), z_adv.detach(), y, Shard.alone(5))
            loss.end_epoch(Collectives())
            saved = io.BytesIO()
            torch.save(loss.state_dict(), saved)
            saved.seek(0)
            loss.load_state_dict(torch.load(saved, weights_only=True))
        except Exception as error:
            raise _error(
                name,
                "must have a state_dict of tensors and plain values that weights_only=True loads, "
                f"{what_happened(error)}: {_SEE}",
            ) from error


class _CollectiveUsed(Exception):
    """Use of values of other workers, which the check does not have."""


def _value(
    name: str, loss: AdversarialLoss, z: Tensor, z_adv: Tensor, y: Tensor, shard: Shard
) -> Tensor:
    """Returns the value of the loss, 0-d, once value and gradients are sound."""
    import torch

    z, z_adv = z.clone().requires_grad_(), z_adv.clone().requires_grad_()
    outputs = [z, z_adv] if loss.needs_clean_gradient else [z_adv]
    where = f"must map logits {tuple(z.shape)}, {tuple(z_adv.shape)} and labels"
    try:
        value = loss(z, z_adv, y, shard)
    except _CollectiveUsed:
        raise
    except (Exception, SystemExit) as error:
        raise _error(name, f"{where} to a loss, but {what_happened(error)}: {_SEE}") from error
    if not isinstance(value, torch.Tensor) or value.shape != () or not value.is_floating_point():
        got = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, torch.Tensor) else None
        raise _error(name, f"{where} to a 0-d floating-point tensor, got {got or _kind(value)}")
    if not value.requires_grad:
        raise _error(name, "must have a gradient at logits_adv, got a value without: do not detach")
    grads = torch.autograd.grad(value, outputs, allow_unused=True)
    if not all(torch.isfinite(t).all() for t in (value, *grads) if t is not None):
        raise _error(name, f"must be finite with finite gradients, got {value.item():.6g}")
    return value.detach()


def _kind(value: object) -> str:
    return f"{value!r}" if isinstance(value, type) else type(value).__name__


def _error(name: str, problem: str) -> UserError:
    return UserError(f"loss {name!r} {problem}")
