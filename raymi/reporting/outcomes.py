"""Per-sample outcomes of an attack, and the file in which a run's folder keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raymi.collectives import Collectives
from raymi.data import ImageSet
from raymi.engine.pgd_evaluation import AttackedBlock, PGDAttack, evaluate_pgd
from raymi.errors import UserError
from raymi.weights import read_weights_file, weights_as_bytes

EXAMPLES = 4
"""Largest number of example images that the attack breaks, and of those that withstand it."""

Heartbeat = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of an attack by sample.

    Attributes:
        y: (N,) int64 labels.
        predicted: (N,) int64 classes of the natural images.
        predicted_adv: (N,) int64 classes of the adversarial images.
        confidence: (N,) probabilities of `predicted`.
        confidence_adv: (N,) probabilities of `predicted_adv`.
        examples: (M,) int64 positions of the example images: the first ones that are correct and
            then broken, followed by the first ones that withstand the attack.
        x: (M, 3, H, W) natural example images in [0, 1].
        x_adv: (M, 3, H, W) adversarial example images in [0, 1].
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
        """(N,) bool, correct without the attack."""
        return self.predicted == self.y

    @property
    def robust(self) -> Tensor:
        """(N,) bool, correct without and under the attack."""
        return self.clean & (self.predicted_adv == self.y)


def attack_images(
    model: nn.Module,
    images: ImageSet,
    attack: PGDAttack,
    block: int = 256,
    micro_batch: int | None = None,
    heartbeat: Heartbeat | None = None,
) -> Outcomes:
    """Runs `evaluate_pgd` once and returns its outcomes, on the CPU."""
    collector = _OutcomeCollector()
    evaluate_pgd(
        model,
        images,
        attack,
        Collectives(),
        block=block,
        micro_batch=micro_batch,
        heartbeat=heartbeat,
        metrics=[collector],
    )
    return collector.outcomes()


class _OutcomeCollector:
    """Observer of `evaluate_pgd` that collects outcomes and a few example images."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, ...]] = []
        self.examples: dict[bool, list[tuple[int, Tensor, Tensor]]] = {True: [], False: []}
        self.num = 0

    def update(self, block: AttackedBlock) -> None:
        """Adds a block of images."""
        confidence, predicted = block.logits.softmax(dim=1).max(dim=1)
        confidence_adv, predicted_adv = block.logits_adv.softmax(dim=1).max(dim=1)
        row = (block.y, predicted, predicted_adv, confidence, confidence_adv)
        self.rows.append(tuple(values.cpu() for values in row))
        correct = predicted == block.y
        broken = predicted_adv != block.y
        for is_broken, examples in self.examples.items():
            chosen = (correct & (broken == is_broken)).nonzero()[: EXAMPLES - len(examples), 0]
            examples += [
                (self.num + int(i), block.x[i].cpu().clone(), block.x_adv[i].cpu().clone())
                for i in chosen
            ]
        self.num += len(block.y)

    def compute(self) -> dict[str, float]:
        """Returns no metrics beside the accuracies."""
        return {}

    def outcomes(self) -> Outcomes:
        y, predicted, predicted_adv, confidence, confidence_adv = (
            torch.cat(parts) for parts in zip(*self.rows, strict=True)
        )
        examples = [*self.examples[True], *self.examples[False]]
        none = torch.zeros(0, 3, 1, 1)
        return Outcomes(
            y,
            predicted,
            predicted_adv,
            confidence,
            confidence_adv,
            examples=torch.tensor([position for position, _, _ in examples], dtype=torch.int64),
            x=torch.stack([x for _, x, _ in examples]) if examples else none,
            x_adv=torch.stack([x_adv for _, _, x_adv in examples]) if examples else none,
        )


def as_bytes(outcomes: Outcomes, protocol: Mapping[str, Any]) -> bytes:
    """Serialises outcomes with the protocol that they depend on."""
    return weights_as_bytes(vars(outcomes), {"question": json.dumps(protocol, sort_keys=True)})


def read_outcomes(path: Path, protocol: Mapping[str, Any]) -> Outcomes | None:
    """Reads the outcomes of a protocol; None from a missing, damaged or foreign file."""
    with suppress(UserError, TypeError):
        tensors, about = read_weights_file(path)
        if about.get("question") == json.dumps(protocol, sort_keys=True):
            return Outcomes(**tensors)
    return None
