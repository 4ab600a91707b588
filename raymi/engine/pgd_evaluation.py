"""Clean and robust accuracy of a classifier over a data set, sharded over workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from raymi.attacks.pgd import pgd
from raymi.attacks.projections import random_start
from raymi.collectives import Collectives, Shard
from raymi.counter_rng import random_key
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.data.batches import global_batch, shard_of, steps_per_epoch
from raymi.engine.context import StopReason
from raymi.models.micro_batches import pieces_of
from raymi.models.modes import evaluation_mode, full_precision

Heartbeat = Callable[[int, int], StopReason | None]
"""Callback with (done, total) of long work, which a returned reason ends."""


@dataclass(frozen=True)
class PGDAttack:
    """Settings of a PGD attack: radius and step in [0, 1] pixel units, seed of its start."""

    norm: str
    eps: float
    alpha: float
    steps: int
    seed: int = 0


@dataclass(frozen=True)
class Accuracy:
    """Clean and robust accuracy, fractions of `num` images."""

    clean: float
    robust: float
    num: int


class AttackedBlock(NamedTuple):
    """Shard of a block of images, natural and attacked.

    Attributes:
        x, x_adv: (b, 3, H, W) in [0, 1].
        logits, logits_adv: (b, K), fp32.
        y: (b,).
        shard: place of the samples in the block.
    """

    x: Tensor
    x_adv: Tensor
    logits: Tensor
    logits_adv: Tensor
    y: Tensor
    shard: Shard


class BlockMetric(Protocol):
    """Metric that `evaluate_pgd` computes from the attacked images."""

    def update(self, block: AttackedBlock) -> None:
        """Adds a worker's shard of a block."""

    def compute(self) -> dict[str, float]:
        """Returns values by name; a collective operation, the same on every worker."""


def evaluate_pgd(
    model: nn.Module,
    images: ImageSet,
    attack: PGDAttack,
    group: Collectives,
    *,
    block: int = 256,
    micro_batch: int | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    heartbeat: Heartbeat | None = None,
    metrics: Sequence[BlockMetric] = (),
) -> Accuracy | StopReason:
    """Computes accuracy on natural images and under PGD with cross-entropy, in eval mode.

    A sample counts as robust if it is classified correctly before and after the attack. The
    attack's start depends on the sample alone.

    Args:
        model: the classifier.
        images: on the model's device.
        attack: its settings.
        group: the workers.
        block: images that are sharded over the workers at a time.
        micro_batch: images of a worker that are attacked together; None: its shard.
        autocast: returns the context in which the model runs.
        heartbeat: called with (images done, total) after each block; a reason that it returns ends
            the evaluation.
        metrics: computed beside accuracy.

    Returns:
        The same `Accuracy` on every worker, or the reason of the heartbeat.
    """
    device = images.images.device
    order = torch.arange(len(images), device=device)
    key = random_key(attack.seed, "evaluate", attack.norm, attack.steps)
    correct = torch.zeros(2, dtype=torch.float64, device=device)
    with evaluation_mode(model), torch.no_grad():
        for k in range(steps_per_epoch(len(images), block)):
            everyone = global_batch(order, block, k)
            shard = shard_of(everyone, group, key)
            x, y = to_unit(images.images[shard.index]), images.labels[shard.index]
            start = random_start(x, attack.eps, attack.norm, key, shard.index)
            parts = pieces_of(micro_batch, x, y, start)
            with autocast():
                attacked = [_attack(model, attack, *part) for part in parts]
            logits, x_adv, logits_adv = (torch.cat(part) for part in zip(*attacked, strict=True))
            clean = logits.argmax(dim=1) == y
            correct += torch.stack([clean.sum(), (clean & (logits_adv.argmax(dim=1) == y)).sum()])
            for metric in metrics:
                metric.update(AttackedBlock(x, x_adv, logits, logits_adv, y, shard))
            if heartbeat is not None:
                stop = heartbeat(min((k + 1) * block, len(images)), len(images))
                if stop is not None:
                    return stop
    clean_total, robust_total = group.sum(correct).tolist()
    return Accuracy(clean_total / len(images), robust_total / len(images), len(images))


def _attack(
    model: nn.Module, attack: PGDAttack, x: Tensor, y: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns h(x) (b, K), x_adv (b, 3, H, W) from its start, h(x_adv) (b, K)."""
    logits = _logits(model, x)
    x_adv = pgd(
        model,
        x,
        y,
        eps=attack.eps,
        alpha=attack.alpha,
        steps=attack.steps,
        norm=attack.norm,
        start=start,
    )
    return logits, x_adv, _logits(model, x_adv)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Returns logits (b, K) in fp32; b may be 0, though not every network takes an empty batch."""
    if len(x) > 0:
        return full_precision(model(x))
    return full_precision(model(x.new_zeros(1, *x.shape[1:])))[:0]
