"""What an attack did to each of some images, and the file that keeps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from raymi.collectives import Collectives
from raymi.data import ImageSet
from raymi.engine.pgd_evaluation import AttackedBlock, PGDAttack, evaluate_pgd

EXAMPLES = 4
"""Images that are kept of those that an attack breaks, and of those that withstand it."""

Heartbeat = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcomes:
    """What an attack came to, by sample.

    y, predicted, predicted_adv: (N,) int64. confidence, confidence_adv: (N,), probabilities of the
    predicted classes. examples: (M,) places among the N of the samples that are kept: the first
    `EXAMPLES` that are right and then broken, then the first that withstand. x, x_adv:
    (M, 3, H, W) in [0, 1], those samples.
    """

    y: Tensor
    predicted: Tensor
    predicted_adv: Tensor
    confidence: Tensor
    confidence_adv: Tensor
    examples: Tensor
    x: Tensor
    x_adv: Tensor

    @property
    def clean(self) -> Tensor:
        """(N,) bool, classified right before the attack."""
        return self.predicted == self.y

    @property
    def robust(self) -> Tensor:
        """(N,) bool, classified right before and after the attack."""
        return self.clean & (self.predicted_adv == self.y)


def attacked(
    model: nn.Module,
    images: ImageSet,
    attack: PGDAttack,
    block: int = 256,
    micro_batch: int | None = None,
    heartbeat: Heartbeat | None = None,
) -> Outcomes:
    """One pass of `evaluate_pgd`, with all its outcomes, on the CPU."""
    seen = _Seen()
    evaluate_pgd(
        model,
        images,
        attack,
        Collectives(),
        block=block,
        micro_batch=micro_batch,
        heartbeat=heartbeat,
        metrics=[seen],
    )
    return seen.outcomes()


class _Seen:
    """Keeps what is to be known of each sample, and a few images."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, ...]] = []
        self.examples: dict[bool, list[tuple[int, Tensor, Tensor]]] = {True: [], False: []}
        self.num = 0

    def update(self, block: AttackedBlock) -> None:
        """Takes all images of a block."""
        confidence, predicted = block.logits.softmax(dim=1).max(dim=1)
        confidence_adv, predicted_adv = block.logits_adv.softmax(dim=1).max(dim=1)
        row = (block.y, predicted, predicted_adv, confidence, confidence_adv)
        self.rows.append(tuple(values.cpu() for values in row))
        right = predicted == block.y
        broken = predicted_adv != block.y
        for is_broken, kept in self.examples.items():
            chosen = (right & (broken == is_broken)).nonzero()[: EXAMPLES - len(kept), 0]
            kept += [
                (self.num + int(i), block.x[i].cpu().clone(), block.x_adv[i].cpu().clone())
                for i in chosen
            ]
        self.num += len(block.y)

    def compute(self) -> dict[str, float]:
        """Nothing to add to the accuracies."""
        return {}

    def outcomes(self) -> Outcomes:
        y, predicted, predicted_adv, confidence, confidence_adv = (
            torch.cat(parts) for parts in zip(*self.rows, strict=True)
        )
        kept = [*self.examples[True], *self.examples[False]]
        examples = torch.tensor([place for place, _, _ in kept], dtype=torch.int64)
        none = torch.zeros(0, 3, 1, 1)
        return Outcomes(
            y,
            predicted,
            predicted_adv,
            confidence,
            confidence_adv,
            examples,
            x=torch.stack([x for _, x, _ in kept]) if kept else none,
            x_adv=torch.stack([x_adv for _, _, x_adv in kept]) if kept else none,
        )


def as_bytes(outcomes: Outcomes, protocol: Mapping[str, Any]) -> bytes:
    """The content of a file: outcomes, bound to what they depend on."""
    tensors = {name: value.contiguous() for name, value in vars(outcomes).items()}
    about = {"question": json.dumps(protocol, sort_keys=True), "sha256": _sha256(tensors)}
    return safetensors.torch.save(tensors, about)


def read_outcomes(path: Path, protocol: Mapping[str, Any]) -> Outcomes | None:
    """The outcomes that a file has of a question; None where it is not there, damaged or of
    another one."""
    with suppress(OSError, safetensors.SafetensorError, TypeError):
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("question") == json.dumps(protocol, sort_keys=True):
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if about.get("sha256") == _sha256(tensors):
                    return Outcomes(**tensors)
    return None


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    """Returns the digest of tensors with their names, types and shapes."""
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.numpy().tobytes())
    return sha.hexdigest()
