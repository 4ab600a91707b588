"""A network is known again by what it answers: its weights alone do not say what it computes.

A network may read a file, a setting or another module's constant, and keep tensors where no state
dict has them.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from raymi.attacks.untouched import untouched
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.errors import UserError
from raymi.files import write_atomically
from raymi.models.modes import FullPrecision

NUM = 64
"""Images, spread over those that are attacked, whose logits stand for the network."""

_FILE = "outputs.safetensors"
_TOLERANCE = 0.03  # of the spread of an image's logits: what another device rounds otherwise


def difference(one: Tensor, other: Tensor) -> float:
    """The largest distance between two outputs (N, K) of an image, against the spread of its
    logits; what is not finite in both is left out, in one of them counts as infinite."""
    finite = one.isfinite()
    if one.shape != other.shape or not torch.equal(finite, other.isfinite()):
        return float("inf")
    one, other = (logits.where(finite, 0.0) for logits in (one, other))
    spread = (one - one.mean(dim=1, keepdim=True)).norm(dim=1).clamp_min(1e-12)
    return ((one - other).norm(dim=1) / spread).max().item()


def check_outputs(name: str, model: nn.Module, images: ImageSet, logits: Tensor | None) -> None:
    """Refuses a network that answers otherwise than the one that was found.

    Args: name of it; model, on the images' device; images, all that are attacked; logits (N, K) of
        `NUM` of them, on the CPU; None: they are random.
    Raises: UserError.
    """
    if logits is None:
        return
    with untouched(model, 0), torch.no_grad():
        now = FullPrecision(model)(to_unit(images.at_most(NUM).images)).cpu()
    if difference(logits, now) > _TOLERANCE:
        raise UserError(
            f"{name} answers otherwise in a worker than where the command was given, with the same "
            "weights: every node must see the same code, files and libraries"
        )


def answered_here(folder: Path, logits: Tensor | None) -> bool:
    """Whether the outcomes in a ledger's folder are those of a network with these logits (N, K);
    True where that is not known."""
    path = folder / _FILE
    if logits is None or not path.is_file():
        return True
    try:
        kept = safetensors.torch.load_file(path)["logits"]
    except (OSError, safetensors.SafetensorError, KeyError):
        return False
    return difference(kept, logits) <= _TOLERANCE


def keep_outputs(folder: Path, logits: Tensor | None) -> None:
    """Puts the logits (N, K) of a network into its ledger's folder, if none are there."""
    path = folder / _FILE
    if logits is not None and not path.is_file():
        write_atomically(path, safetensors.torch.save({"logits": logits.contiguous()}))
