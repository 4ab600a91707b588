"""What a report measures itself: one PGD pass for each radius over some test images, sample by
sample.

Outcomes are kept in a file of the run's folder that is bound to weights, images and attack, so that
another report does not attack again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raymi.attacks.catalogue import Threat
from raymi.data import ImageSet
from raymi.engine.pgd_evaluation import PGDAttack
from raymi.errors import StorageError
from raymi.evaluation.protocol import protocol_hash, protocol_of
from raymi.files import save
from raymi.reporting.outcomes import Heartbeat, Outcomes, as_bytes, attacked, read_outcomes
from raymi.statistics import wilson_interval


@dataclass(frozen=True)
class Rate:
    """`right` of `num` samples, as a fraction with its 95% Wilson interval."""

    right: int
    num: int

    @property
    def accuracy(self) -> float:
        """A fraction."""
        return self.right / self.num

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson_interval(self.right, self.num)


@dataclass(frozen=True)
class Measured:
    """What was measured of a classifier.

    Args:
        data: name of the images; digest of them all, for comparisons; num, N.
        class_names: K names.
        threat: of the run.
        steps: of PGD, each of a quarter of its radius.
        by_radius: radius in pixel units to outcomes; that of the threat is among them.
    """

    data: str
    digest: str
    num: int
    class_names: tuple[str, ...]
    threat: Threat
    steps: int
    by_radius: Mapping[float, Outcomes] = field(repr=False)

    @property
    def at_threat(self) -> Outcomes:
        """What the attack of the threat's radius came to."""
        return self.by_radius[self.threat.eps]

    def curve(self) -> dict[float, Rate]:
        """Accuracy by radius, from 0, where it is that of the natural images."""
        clean = Rate(int(self.at_threat.clean.sum()), self.num)
        attacked = {
            eps: Rate(int(one.robust.sum()), self.num)
            for eps, one in sorted(self.by_radius.items())
            if eps > 0
        }
        return {0.0: clean, **attacked}

    def suspicions(self) -> list[str]:
        """What is odd for a robust network: accuracy that rises with the radius by more than noise,
        or stays above chance at four times the threat's."""
        curve = list(self.curve().items())
        found = [
            f"accuracy under PGD-{self.steps} rises from {before.accuracy:.1%} at radius "
            f"{smaller:.3g} to {after.accuracy:.1%} at {larger:.3g}"
            for (smaller, before), (larger, after) in pairwise(curve)
            if after.interval[0] > before.interval[1]
        ]
        largest, rate = curve[-1]
        if largest >= 4 * self.threat.eps and rate.interval[0] > 1 / len(self.class_names):
            found.append(
                f"{rate.accuracy:.1%} withstand PGD-{self.steps} at radius {largest:.3g}, more "
                "than chance"
            )
        return found

    def by_class(self) -> dict[int, tuple[Rate, Rate]]:
        """Clean and robust accuracy under the threat, by the class; of those that have samples."""
        found = {}
        for label in range(len(self.class_names)):
            of_class = self.at_threat.y == label
            if num := int(of_class.sum()):
                clean, robust = self.at_threat.clean, self.at_threat.robust
                rates = (Rate(int((right & of_class).sum()), num) for right in (clean, robust))
                found[label] = tuple(rates)
        return found  # type: ignore[return-value]


def measure(
    model: nn.Module,
    digest: str,
    images: ImageSet,
    data: str,
    threat: Threat,
    radii: tuple[float, ...],
    *,
    steps: int,
    block: int,
    micro_batch: int | None,
    folder: Path,
    heartbeat: Heartbeat,
    tell: Callable[[str], None],
) -> Measured:
    """Attacks images at each radius and at that of the threat, where no file has the outcomes yet.

    Args:
        model: on the device of the images. digest: of its weights and how it is built.
        images: N of them. data: their name.
        radii: in pixel units.
        steps: of PGD, of a quarter of the radius each.
        block, micro_batch: see `evaluate_pgd`.
        folder: where outcomes are kept. tell: shown a line where they cannot be.
        heartbeat: called with (images done, images in all); what it raises ends the measurement.
    """
    everything = sorted({threat.eps, *(eps for eps in radii if eps > 0)})
    by_radius = {}
    for position, eps in enumerate(everything):
        attack = PGDAttack(threat.norm, eps, eps / 4, steps)
        protocol = _question(digest, images, attack, block)
        path = folder / f"{threat.norm}-pgd-{steps}-{protocol_hash(protocol)}.safetensors"
        outcomes = read_outcomes(path, protocol)
        if outcomes is None:
            before = position * len(images)

            def beat(done: int, _: int, before: int = before) -> None:
                heartbeat(before + done, len(everything) * len(images))

            outcomes = attacked(model, images, attack, block, micro_batch, beat)
            try:
                save(path, as_bytes(outcomes, protocol))
            except StorageError as error:
                tell(f"{error}; without the file, the next report attacks again")
        by_radius[eps] = outcomes
        heartbeat((position + 1) * len(images), len(everything) * len(images))
    names = images.class_names
    return Measured(data, images.digest, len(images), names, threat, steps, by_radius)


def _question(digest: str, images: ImageSet, attack: PGDAttack, block: int) -> dict[str, Any]:
    """What the outcomes depend on, in JSON's types."""
    common = protocol_of(
        digest,
        images,
        Threat(attack.norm, attack.eps),
        seed=attack.seed,
        block=block,
        device=images.images.device.type,
        threads=torch.get_num_threads(),
    )
    return {**common, "pgd": {"steps": attack.steps, "alpha": attack.alpha}}
