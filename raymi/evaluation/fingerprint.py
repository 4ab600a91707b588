"""Fingerprints of networks: outputs and gradients on fixed images.

Weights alone do not identify a network: it may read a file, a setting or another module's constant,
hold tensors outside of its state dict, or have other gradients with the same outputs.
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

NUM_IMAGES = 64
"""Images of a fingerprint, spread over the attacked ones."""

CHUNK = 8
"""Images in one forward pass of a fingerprint."""

_TOLERANCE = 0.03  # of the spread of an image's logits: rounding on another device
_ALIKE = 0.9  # cosine of gradients, and share of the images with such gradients


@dataclass(frozen=True)
class Fingerprint:
    """Outputs of a network on `NUM_IMAGES` images.

    Args:
        logits: (N, K) from a seed.
        gradients: (N, C*H*W) of the margin, zero where it has none.
        random: the outputs are randomised.
    """

    logits: Tensor
    gradients: Tensor
    random: bool

    def as_bytes(self) -> bytes:
        """Serialises to safetensors."""
        tensors = {"logits": self.logits, "slopes": self.gradients.half()}
        tensors["random"] = torch.tensor(self.random)
        return safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Fingerprint:
        """Parses the bytes of `as_bytes`.

        Raises:
            ValueError: they are not a fingerprint.
        """
        try:
            tensors = safetensors.torch.load(data)
            random = bool(tensors["random"])
            return cls(tensors["logits"], tensors["slopes"].float(), random)
        except (safetensors.SafetensorError, KeyError) as error:
            raise ValueError(f"expected a fingerprint of a network, got {error}") from None

    def matches(self, other: Fingerprint) -> bool:
        """Returns whether two fingerprints belong to one network, up to rounding."""
        if self.random != other.random or self.gradients.shape != other.gradients.shape:
            return False
        if difference(self.logits, other.logits) > _TOLERANCE:
            return False
        nonzero = [gradients.norm(dim=1) > 0 for gradients in (self.gradients, other.gradients)]
        cosines = F.cosine_similarity(self.gradients, other.gradients, dim=1)
        alike = torch.where(nonzero[0] & nonzero[1], cosines > _ALIKE, nonzero[0] == nonzero[1])
        return bool(alike.float().mean() >= _ALIKE)


def difference(one: Tensor, other: Tensor) -> float:
    """Returns the largest distance between two outputs of an image, in units of its logits' spread.

    Args:
        one: (N, K) logits.
        other: (N, K) logits; entries that are not finite in both are left out, in one of the two
            they count as infinite.
    """
    finite = one.isfinite()
    if one.shape != other.shape or not torch.equal(finite, other.isfinite()):
        return float("inf")
    one, other = (logits.where(finite, 0.0) for logits in (one, other))
    spread = (one - one.mean(dim=1, keepdim=True)).norm(dim=1)
    rounding = 1e-3 * one.abs().amax(dim=1).clamp_min(1e-12)  # if all logits are alike
    return ((one - other).norm(dim=1) / torch.maximum(spread, rounding)).max().item()


def check_outputs(
    name: str, model: nn.Module, images: ImageSet, fingerprint: Fingerprint | None
) -> None:
    """Refuses a network whose outputs differ from the fingerprint of the driver's.

    Args:
        name: of the network.
        model: on the images' device.
        images: all images of the evaluation.
        fingerprint: taken by the driver; None: unknown.

    Raises:
        UserError: logits differ.
    """
    if not _has_logits(model, images, fingerprint, NUM_IMAGES):
        raise UserError(
            f"{name} has other outputs in a worker than in the driver, with the same weights: "
            "every node must see the same code, files and libraries"
        )


def check_unchanged(model: nn.Module, images: ImageSet, fingerprint: Fingerprint | None) -> None:
    """Refuses a network whose outputs changed during an attack.

    Args:
        model: on the images' device.
        images: all images of the evaluation.
        fingerprint: taken before any attack; None: unknown.

    Raises:
        UserError: logits of a few images differ.
    """
    if not _has_logits(model, images, fingerprint, CHUNK):
        raise UserError(
            "the network has other outputs after this step than before any attack (state that "
            "changes), so its accuracy is undefined: let it hold no state in eval mode"
        )


def _has_logits(
    model: nn.Module, images: ImageSet, fingerprint: Fingerprint | None, num: int
) -> bool:
    if fingerprint is None or fingerprint.random:  # other random numbers on another device
        return True
    x = to_unit(images.at_most(NUM_IMAGES).images[:num])
    with untouched(model, 0), torch.no_grad():
        outputs = FullPrecision(model)
        logits = torch.cat([outputs(chunk) for chunk in x.split(CHUNK)]).cpu()
    return difference(fingerprint.logits[:num], logits) <= _TOLERANCE
