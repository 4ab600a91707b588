"""Clean and robust accuracy of a classifier over a data set, shared among the workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymi.attacks.pgd import pgd
from raymi.attacks.projections import random_start
from raymi.collectives import Collectives
from raymi.counter_rng import random_key
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.data.batches import share
from raymi.models.modes import evaluation_mode


@dataclass(frozen=True)
class PGDAttack:
    """The settings of one PGD run: radius and step in pixel units, and the seed of its start."""

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


def evaluate_pgd(
    model: nn.Module,
    images: ImageSet,
    attack: PGDAttack,
    group: Collectives,
    *,
    batch_size: int = 256,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    heartbeat: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Accuracy on natural images and under PGD with cross-entropy, in eval mode.

    A sample counts as robust if it is classified right before and after the attack. Each worker
    takes a contiguous share; the attack's start depends on the sample alone.

    Args:
        images: on the model's device.
        heartbeat: called with (images done, images of this worker) after each block, equally
            often on every worker; what it raises ends the evaluation.
    Returns: the same `Accuracy` on every worker.
    """
    device = images.images.device
    mine = share(torch.arange(len(images)), group.rank, group.world_size).to(device)
    num_blocks = -(-len(images) // (group.world_size * batch_size))  # of the largest share
    key = random_key(attack.seed, "evaluate", attack.norm, attack.steps)
    right = torch.zeros(2, dtype=torch.float64, device=device)
    done = 0
    with evaluation_mode(model), torch.no_grad(), autocast():
        for block in range(num_blocks):
            index = mine[block * batch_size : (block + 1) * batch_size]
            x, y = to_unit(images.images[index]), images.labels[index]
            clean = _right(model, x, y)
            start = random_start(x, attack.eps, attack.norm, key, index)
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
            right += torch.stack([clean.sum(), (clean & _right(model, x_adv, y)).sum()])
            done += len(index)
            if heartbeat is not None:
                heartbeat(done, len(mine))
    clean_total, robust_total = group.sum(right).tolist()
    return Accuracy(clean_total / len(images), robust_total / len(images), len(images))


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    if len(x) == 0:  # not every network takes an empty batch
        return torch.zeros_like(y, dtype=torch.bool)
    return model(x).argmax(dim=1) == y
