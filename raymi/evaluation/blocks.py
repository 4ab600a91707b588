"""What is measured where: fixed blocks of samples, and the steps that each goes through.

A block and its seed depend on nothing but their number, so that results do not depend on how many
workers share the blocks, nor on which was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymi.attacks.catalogue import Batch, Threat, predicted, run_attack
from raymi.attacks.suites import Ensemble
from raymi.attacks.untouched import untouched
from raymi.counter_rng import random_key
from raymi.data import ImageSet
from raymi.data.augment import to_unit

CLEAN = "clean"
"""The first step of each block: natural accuracy."""


@dataclass(frozen=True, order=True)
class Step:
    """One attack of an ensemble on one block: the attack's place in the ensemble, and its name."""

    ensemble: str
    position: int
    attack: str
    block: int


@dataclass(frozen=True)
class Outcome:
    """What a step did to each sample that it was given.

    `samples` (M,) int64, places in the data set; `labels`, `predictions` (M,) int64, -1 where a
    logit is not finite; `broken` (M,), misclassified by what counts; `usable` (M,), the attack made
    an image at all; `linf`, `l2` (M,) float32, how far it is from the clean one, in pixel units;
    `seconds` of the whole step.
    """

    samples: Tensor
    labels: Tensor
    predictions: Tensor
    broken: Tensor
    usable: Tensor
    linf: Tensor
    l2: Tensor
    seconds: float

    @property
    def left(self) -> Tensor:
        """The samples that withstood: (L,)."""
        return self.samples[~self.broken]


class BlockAttacker:
    """Attacks blocks on one device.

    Args: model, images in [0, 1] to logits, on the images' device; images; ensembles; threat; size
        of a block; seed of the evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        ensembles: Sequence[Ensemble],
        threat: Threat,
        *,
        size: int,
        seed: int,
    ) -> None:
        self.model, self.images, self.threat = model, images, threat
        self.size, self.seed = size, seed
        self._attacks = {ensemble.name: ensemble.attacks for ensemble in ensembles}

    def perform(self, step: Step, samples: Tensor) -> tuple[Outcome, Tensor]:
        """One step on the samples of its block that are left, (M,) int64.

        Returns: the outcome, on the CPU, and x_adv (M, 3, H, W).
        """
        samples = samples.to(self.images.labels.device)
        x, y = to_unit(self.images.images[samples]), self.images.labels[samples]
        seed = block_seed(self.seed, step.block)
        began = time.perf_counter()
        if step.attack == CLEAN:
            with untouched(self.model):
                torch.manual_seed(seed)  # for a network that draws random numbers
                predictions = predicted(self.model, x)
            x_adv, broken = x, predictions != y
            usable, linf = torch.ones_like(broken), torch.zeros(len(x), device=x.device)
            l2 = linf
        else:
            attack = self._attacks[step.ensemble][step.position]
            batch = Batch(x, y, samples, seed)
            broken, usable, x_adv, predictions, linf, l2 = run_attack(
                attack, self.model, batch, self.threat
            )
        found = Outcome(
            samples=samples.cpu(),
            labels=y.cpu(),
            predictions=predictions.cpu(),
            broken=broken.cpu(),
            usable=usable.cpu(),
            linf=linf.cpu(),
            l2=l2.cpu(),
            seconds=time.perf_counter() - began,  # evaluated last: the device is done
        )
        return found, x_adv


def block_seed(seed: int, block: int) -> int:
    """The seed of everything random in a block, for any attack: in [0, 2**31)."""
    return random_key(seed, "block", block) % 2**31


class Schedule:
    """Which steps can be made, which wait for others, and which are done.

    A block is first classified as it is; each ensemble then has its attacks in order, on the
    samples that withstood so far. A step to which no sample is left is made all the same, at no
    cost: the record says so.

    Args: num, samples; size of a block; ensembles.
    """

    def __init__(self, num: int, size: int, ensembles: Sequence[Ensemble]) -> None:
        self.num, self.size, self.ensembles = num, size, tuple(ensembles)
        self.num_blocks = -(-num // size)
        self.total = self.num_blocks * (1 + sum(len(e.attacks) for e in self.ensembles))

    def first(self) -> Iterator[tuple[Step, Tensor]]:
        """The steps with which everything begins, and their samples."""
        for block in range(self.num_blocks):
            samples = torch.arange(block * self.size, min((block + 1) * self.size, self.num))
            yield Step(CLEAN, 0, CLEAN, block), samples

    def after(self, step: Step, outcome: Outcome) -> Iterator[tuple[Step, Tensor]]:
        """The steps that can be made once this one is done."""
        for ensemble in self.ensembles:
            position = 0 if step.attack == CLEAN else step.position + 1
            if step.attack != CLEAN and step.ensemble != ensemble.name:
                continue
            if position < len(ensemble.attacks):
                name = ensemble.attacks[position].name
                yield Step(ensemble.name, position, name, step.block), outcome.left
