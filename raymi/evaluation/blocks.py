"""Blocks of samples and the steps that attack them.

Blocks and their seeds depend on the block's number alone, so results do not depend on the number
of workers or on interruptions.
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
"""First step of each block: natural accuracy."""


@dataclass(frozen=True, order=True)
class Step:
    """Attack on a block; `position`: the attack's index in its ensemble."""

    ensemble: str
    position: int
    attack: str
    block: int


@dataclass(frozen=True)
class Outcome:
    """Per-sample outcome of a step; tensors are on the CPU.

    Args:
        samples: (M,) int64, indices into the attacked images.
        places: (M,) int64, indices into the data set, from which the images may be selected.
        labels: (M,) int64.
        predictions: (M,) int64, see `predicted`.
        broken: (M,) bool, misclassified by an image that the threat allows.
        usable: (M,) bool, the attack returned a valid image.
        linf: (M,) float32, distance to the clean image in pixel units.
        l2: (M,) float32, likewise.
        seconds: duration of the whole step.
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
    def unbroken(self) -> Tensor:
        """Samples that the attack did not break, (L,)."""
        return self.samples[~self.broken]


class BlockAttacker:
    """Attacker of blocks on one device.

    Args:
        model: images in [0, 1] to logits, on the images' device.
        images: all images of the evaluation.
        ensembles: attacks.
        threat: norm and radius of all attacks.
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

    def run(
        self, step: Step, samples: Tensor, x_adv: Tensor | None = None
    ) -> tuple[Outcome, Tensor]:
        """Runs one step.

        Args:
            step: attack and block.
            samples: (M,) int64, samples of the block to attack.
            x_adv: (M, 3, H, W), made before on another model; None: run the attack.

        Returns:
            The outcome, and x_adv (M, 3, H, W) on the CPU.
        """
        device = self.images.labels.device
        samples = samples.to(device)
        x, y = to_unit(self.images.images[samples]), self.images.labels[samples]
        places = self.images.places[samples]
        batch = Batch(x, y, places, block_seed(self.seed, step.block))
        began = time.perf_counter()
        attacked = (
            self._classify(batch)
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
        outcome = Outcome(
            samples=samples.cpu(),
            places=places.cpu(),
            labels=y.cpu(),
            predictions=on_cpu.prediction,
            broken=on_cpu.broken,
            usable=on_cpu.usable,
            linf=on_cpu.linf,
            l2=on_cpu.l2,
            seconds=time.perf_counter() - began,  # the copies above waited for the device
        )
        if len(samples):
            self.check()
        return outcome, on_cpu.x_adv

    def _classify(self, batch: Batch) -> Attacked:
        """Classifies the clean images."""
        with untouched(self.model, batch.seed):  # networks may draw random numbers
            prediction = predicted(self.model, batch.x)
        broken = prediction != batch.y
        distance = torch.zeros(len(batch.x), device=batch.x.device)
        return Attacked(broken, torch.ones_like(broken), batch.x, prediction, distance, distance)


def block_seed(seed: int, block: int) -> int:
    """Returns the random seed of all attacks on a block, in [0, 2**31)."""
    return random_key(seed, "block", block) % 2**31


class Schedule:
    """Order of the steps.

    Each block is classified first. Each ensemble then runs its attacks in order, on the samples
    that are not broken yet. A step without samples runs, too, and is recorded at no cost.

    Args:
        num: number of samples.
        size: samples in a block.
        ensembles: attacks.
    """

    def __init__(self, num: int, size: int, ensembles: Sequence[Ensemble]) -> None:
        self.num, self.size, self.ensembles = num, size, tuple(ensembles)
        self.num_blocks = -(-num // size)

    def blocks_of(self, ensemble: Ensemble) -> tuple[int, ...]:
        """Returns the blocks that an ensemble attacks, evenly spread as data may be sorted."""
        num = self.num_blocks
        if ensemble.most is not None:
            num = min(num, -(-ensemble.most // self.size))
        return tuple(k * self.num_blocks // num for k in range(num))

    def steps_by_attack(self) -> dict[tuple[str, str], int]:
        """Counts the steps of each (ensemble, attack), the clean one first."""
        return {(CLEAN, CLEAN): self.num_blocks} | {
            (ensemble.name, attack.name): len(self.blocks_of(ensemble))
            for ensemble in self.ensembles
            for attack in ensemble.attacks
        }

    def first(self) -> Iterator[tuple[Step, Tensor]]:
        """Yields the steps that depend on no other, with their samples."""
        for block in range(self.num_blocks):
            samples = torch.arange(block * self.size, min((block + 1) * self.size, self.num))
            yield Step(CLEAN, 0, CLEAN, block), samples

    def after(self, step: Step, outcome: Outcome) -> Iterator[tuple[Step, Tensor]]:
        """Yields the steps that depend on this one, with their samples."""
        if step.attack == CLEAN:
            for ensemble in self.ensembles:
                if step.block in self.blocks_of(ensemble):
                    samples = outcome.samples if ensemble.everyone else outcome.unbroken
                    yield self._step(ensemble, 0, step.block), samples
            return
        ensemble = next(one for one in self.ensembles if one.name == step.ensemble)
        if step.position + 1 < len(ensemble.attacks):
            yield self._step(ensemble, step.position + 1, step.block), outcome.unbroken

    @staticmethod
    def _step(ensemble: Ensemble, position: int, block: int) -> Step:
        return Step(ensemble.name, position, ensemble.attacks[position].name, block)
