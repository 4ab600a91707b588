"""What is measured where: fixed blocks of samples, and the steps that each goes through.

A block and its seed depend on nothing but their number, so that results do not depend on how many
workers share the blocks, nor on which was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymi.attacks.catalogue import Threat
from raymi.attacks.execution import Attacked, Batch, predicted, run_attack
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
    """What a step did to each sample that it was given, all on the CPU.

    Args:
        samples: (M,) int64, which of the images that are attacked.
        places: (M,) int64, theirs in the data set, of which those may be a selection.
        labels: (M,) int64.
        predictions: (M,) int64, see `predicted`.
        broken: (M,) bool, misclassified by what counts.
        usable: (M,) bool, the attack made an image at all.
        linf, l2: (M,) float32, how far that is from the clean one, in pixel units.
        seconds: of the whole step.
    """

    samples: Tensor
    places: Tensor
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

    Args:
        model: images in [0, 1] to logits, on the images' device.
        images: all that are attacked.
        ensembles: attacks.
        threat: of all attacks.
        seed: of the evaluation.
        check: called after each step that has samples; its error voids the step.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        ensembles: Sequence[Ensemble],
        threat: Threat,
        *,
        seed: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.check = check
        self.model, self.images, self.threat = model, images, threat
        self.seed = seed
        self._attacks = {ensemble.name: ensemble.attacks for ensemble in ensembles}

    def perform(
        self, step: Step, samples: Tensor, x_adv: Tensor | None = None
    ) -> tuple[Outcome, Tensor]:
        """One step on the samples of its block that are left, (M,) int64.

        Args: x_adv (M, 3, H, W), made before on another model; None: the attack is made here.
        Returns: the outcome, and x_adv (M, 3, H, W), on the CPU.
        """
        device = self.images.labels.device
        samples = samples.to(device)
        x, y = to_unit(self.images.images[samples]), self.images.labels[samples]
        places = self.images.places[samples]
        batch = Batch(x, y, places, block_seed(self.seed, step.block))
        began = time.perf_counter()
        attacked = (
            self._classified(batch)
            if step.attack == CLEAN
            else run_attack(
                self._attacks[step.ensemble][step.position],
                self.model,
                batch,
                self.threat,
                None if x_adv is None else x_adv.to(device),
            )
        )
        on_cpu = Attacked(*(tensor.cpu() for tensor in attacked))
        found = Outcome(
            samples=samples.cpu(),
            places=places.cpu(),
            labels=y.cpu(),
            predictions=on_cpu.prediction,
            broken=on_cpu.broken,
            usable=on_cpu.usable,
            linf=on_cpu.linf,
            l2=on_cpu.l2,
            seconds=time.perf_counter() - began,  # the device is done: its results are here
        )
        if len(samples):
            self.check()
        return found, on_cpu.x_adv

    def _classified(self, batch: Batch) -> Attacked:
        """The samples as they are."""
        with untouched(self.model, batch.seed):  # for a network that draws random numbers
            prediction = predicted(self.model, batch.x)
        broken = prediction != batch.y
        far = torch.zeros(len(batch.x), device=batch.x.device)
        return Attacked(broken, torch.ones_like(broken), batch.x, prediction, far, far)


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

    def blocks_of(self, ensemble: Ensemble) -> tuple[int, ...]:
        """Blocks that an ensemble attacks; of some, evenly spread ones, as data may be sorted."""
        num = self.num_blocks
        if ensemble.most is not None:
            num = min(num, -(-ensemble.most // self.size))
        return tuple(k * self.num_blocks // num for k in range(num))

    def steps_by_attack(self) -> dict[tuple[str, str], int]:
        """How many steps each attack of each ensemble takes, by their names; first the clean
        one."""
        return {(CLEAN, CLEAN): self.num_blocks} | {
            (ensemble.name, attack.name): len(self.blocks_of(ensemble))
            for ensemble in self.ensembles
            for attack in ensemble.attacks
        }

    def first(self) -> Iterator[tuple[Step, Tensor]]:
        """The steps with which everything begins, and their samples."""
        for block in range(self.num_blocks):
            samples = torch.arange(block * self.size, min((block + 1) * self.size, self.num))
            yield Step(CLEAN, 0, CLEAN, block), samples

    def after(self, step: Step, outcome: Outcome) -> Iterator[tuple[Step, Tensor]]:
        """The steps that can be made once this one is done."""
        if step.attack == CLEAN:
            for ensemble in self.ensembles:
                if step.block in self.blocks_of(ensemble):
                    samples = outcome.samples if ensemble.everyone else outcome.left
                    yield self._step(ensemble, 0, step.block), samples
            return
        ensemble = next(one for one in self.ensembles if one.name == step.ensemble)
        if step.position + 1 < len(ensemble.attacks):
            yield self._step(ensemble, step.position + 1, step.block), outcome.left

    @staticmethod
    def _step(ensemble: Ensemble, position: int, block: int) -> Step:
        return Step(ensemble.name, position, ensemble.attacks[position].name, block)
