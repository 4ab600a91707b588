"""Checks of a user's own loss or MI term on a small batch, before any long work."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from raymi.errors import UserError, what_happened

if TYPE_CHECKING:
    from torch import Tensor

    from raymi.collectives import Collectives, Shard

NUM = 5
"""Samples of the batch."""
SEE = "see docs/extending.md"


class Stateful(Protocol):
    """Loss or MI term."""

    def end_epoch(self, group: Collectives) -> None:
        """Called after the last step of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state."""


class CollectiveUsed(Exception):
    """Use of values of other workers, which the check does not have."""


def check_shards(
    refusal: Callable[[str], UserError], value_of: Callable[[slice, Shard], Tensor]
) -> None:
    """Checks that the mean over workers does not depend on their number.

    Args:
        refusal: returns the error for a problem.
        value_of: maps rows of the batch and their place in it to the value, 0-d.

    Raises:
        UserError: one worker and two have other values.
    """
    import torch

    from raymi.collectives import Collectives, Shard

    class Unavailable(Collectives):
        """Group whose other workers do not exist."""

        def __getattribute__(self, name: str) -> Any:
            if name in ("gather", "sum", "max", "exchange"):
                raise CollectiveUsed
            return super().__getattribute__(name)

    whole = value_of(slice(NUM), Shard.alone(NUM))
    parts = []
    for rank, rows in enumerate((slice(NUM - 1), slice(NUM - 1, NUM))):
        group = Unavailable()
        group.rank, group.world_size = rank, 2
        try:
            parts.append(value_of(rows, Shard((NUM - 1, 1), group, torch.arange(NUM)[rows])))
        except CollectiveUsed:
            return  # only several processes can show it
    mean = torch.stack(parts).mean()
    if not torch.allclose(mean, whole, rtol=1e-4, atol=1e-5):
        raise refusal(
            f"depends on the number of workers: {whole:.6g} on one, {mean:.6g} on two; return "
            "shard.mean(values) of (b,) values of samples"
        )


def check_value(
    refusal: Callable[[str], UserError], where: str, value: object, outputs: Sequence[Tensor]
) -> Tensor:
    """Checks the value of a loss and its gradients.

    Args:
        refusal: returns the error for a problem.
        where: input of the loss, which begins messages.
        value: result of the loss.
        outputs: at which gradients are taken.

    Returns:
        The detached value.

    Raises:
        UserError: it is no finite 0-d tensor with finite gradients.
    """
    import torch

    if not isinstance(value, torch.Tensor) or value.shape != () or not value.is_floating_point():
        got = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, torch.Tensor) else None
        raise refusal(f"{where} to a 0-d floating-point tensor, got {got or kind_of(value)}")
    if not value.requires_grad:
        raise refusal("must have a gradient at logits_adv, got a value without: do not detach")
    grads = torch.autograd.grad(value, outputs, allow_unused=True)
    if not all(torch.isfinite(t).all() for t in (value, *grads) if t is not None):
        raise refusal(f"must be finite with finite gradients, got {value.item():.6g}")
    return value.detach()


def check_state(refusal: Callable[[str], UserError], owner: Stateful) -> None:
    """Ends an epoch and checks that the state can be kept in a checkpoint.

    Raises:
        UserError: `torch.load(..., weights_only=True)` does not load it, or it is not restored.
    """
    import torch

    from raymi.collectives import Collectives

    try:
        owner.end_epoch(Collectives())
        saved = io.BytesIO()
        torch.save(owner.state_dict(), saved)
        saved.seek(0)
        owner.load_state_dict(torch.load(saved, weights_only=True))
    except Exception as error:
        raise refusal(
            "must have a state_dict of tensors and plain values that weights_only=True loads, "
            f"{what_happened(error)}: {SEE}"
        ) from error


def kind_of(value: object) -> str:
    """Returns a class itself, or the name of an object's class."""
    return f"{value!r}" if isinstance(value, type) else type(value).__name__
