"""A network is known again by what it answers: its weights alone do not say what it computes.

A network may read a file, a setting or another module's constant, keep tensors where no state dict
has them, or answer as another one does and have other gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.attacks.untouched import untouched
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.errors import UserError
from raymi.models.modes import FullPrecision

NUM = 64
"""Images, spread over those that are attacked, whose outputs stand for the network."""

PIECE = 8
"""Images of these that are looked at together."""

_TOLERANCE = 0.03  # of the spread of an image's logits: what another device rounds otherwise
_ALIKE = 0.9  # cosine of gradients, and share of the images whose gradients are alike


@dataclass(frozen=True)
class Fingerprint:
    """What a network answers on `NUM` images: `logits` (N, K) from a seed; `slopes` (N, C*H*W), the
    margin's gradients, zero where there are none; whether it answers otherwise each time."""

    logits: Tensor
    slopes: Tensor
    random: bool

    def as_bytes(self) -> bytes:
        """For a file."""
        tensors = {"logits": self.logits, "slopes": self.slopes.half()}
        tensors["random"] = torch.tensor(self.random)
        return safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Fingerprint:
        """What `as_bytes` made.

        Raises: ValueError where it did not.
        """
        try:
            tensors = safetensors.torch.load(data)
            random = bool(tensors["random"])
            return cls(tensors["logits"], tensors["slopes"].float(), random)
        except (safetensors.SafetensorError, KeyError) as error:
            raise ValueError(f"expected what a network answers, got {error}") from None

    def are_those_of(self, other: Fingerprint) -> bool:
        """Whether two networks are the same one, as far as can be seen."""
        if self.random != other.random or self.slopes.shape != other.slopes.shape:
            return False
        if difference(self.logits, other.logits) > _TOLERANCE:
            return False
        there = [slopes.norm(dim=1) > 0 for slopes in (self.slopes, other.slopes)]
        cosines = F.cosine_similarity(self.slopes, other.slopes, dim=1)
        alike = torch.where(there[0] & there[1], cosines > _ALIKE, there[0] == there[1])
        return bool(alike.float().mean() >= _ALIKE)


def difference(one: Tensor, other: Tensor) -> float:
    """The largest distance between two outputs (N, K) of an image, against the spread of its
    logits; what is not finite in both is left out, in one of them counts as infinite."""
    finite = one.isfinite()
    if one.shape != other.shape or not torch.equal(finite, other.isfinite()):
        return float("inf")
    one, other = (logits.where(finite, 0.0) for logits in (one, other))
    spread = (one - one.mean(dim=1, keepdim=True)).norm(dim=1)
    rounding = 1e-3 * one.abs().amax(dim=1).clamp_min(1e-12)  # where all logits are alike
    return ((one - other).norm(dim=1) / torch.maximum(spread, rounding)).max().item()


def check_outputs(
    name: str, model: nn.Module, images: ImageSet, outputs: Fingerprint | None
) -> None:
    """Refuses a network that answers otherwise than the one that was found.

    Args:
        name: of the network.
        model: on the images' device.
        images: all that are attacked.
        outputs: of the network that was found; None: not known.

    Raises:
        UserError: logits differ.
    """
    if not _are_still(model, images, outputs, NUM):
        raise UserError(
            f"{name} answers otherwise in a worker than where the command was given, with the same "
            "weights: every node must see the same code, files and libraries"
        )


def check_unchanged(model: nn.Module, images: ImageSet, outputs: Fingerprint | None) -> None:
    """Refuses a network that answers otherwise after an attack than before.

    Args:
        model: on the images' device.
        images: all that are attacked.
        outputs: of the network before any attack; None: not known.

    Raises:
        UserError: logits of a few images differ.
    """
    if not _are_still(model, images, outputs, PIECE):
        raise UserError(
            "after it the network answers otherwise than before any attack (state that changes), "
            "so no accuracy is its own: let it keep no state in eval mode"
        )


def _are_still(model: nn.Module, images: ImageSet, outputs: Fingerprint | None, num: int) -> bool:
    if outputs is None or outputs.random:  # of another device's random numbers
        return True
    x = to_unit(images.at_most(NUM).images[:num])
    with untouched(model, 0), torch.no_grad():
        answers = FullPrecision(model)
        now = torch.cat([answers(part) for part in x.split(PIECE)]).cpu()
    return difference(outputs.logits[:num], now) <= _TOLERANCE
