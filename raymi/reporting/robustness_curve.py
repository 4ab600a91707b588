"""Accuracy of a classifier by radius of a PGD attack.

Outcomes are saved in the run's folder, bound to weights, images and attack, so that the next report
does not attack again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raymi.attacks.catalogue import Threat
from raymi.data import ImageSet
from raymi.engine.pgd_evaluation import PGDAttack
from raymi.errors import StorageError
from raymi.evaluation.protocol import name_of, protocol_of
from raymi.files import save
from raymi.formatting import percent_text
from raymi.reporting.outcomes import Heartbeat, Outcomes, as_bytes, attack_images, read_outcomes
from raymi.statistics import Number, wilson_interval


@dataclass(frozen=True)
class RobustnessCurve:
    """Outcomes of PGD at several radii.

    Attributes:
        data: name of the images.
        digest: of all images, by which curves are comparable.
        num: number of images, N.
        class_names: names of the K classes.
        threat: of the run.
        steps: of PGD, each of a quarter of the radius.
        by_radius: outcomes by radius in [0, 1] pixel units; the radius of the threat is included.
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
        """Outcomes at the radius of the threat."""
        return self.by_radius[self.threat.eps]

    def accuracies(self) -> dict[float, Number]:
        """Computes the accuracy by radius; radius 0 stands for natural images."""
        robust = {
            eps: _accuracy(outcomes.robust)
            for eps, outcomes in sorted(self.by_radius.items())
            if eps > 0
        }
        return {0.0: _accuracy(self.at_threat.clean), **robust}

    def warnings(self) -> list[str]:
        """Describes signs of false robustness.

        Accuracy must not rise with the radius beyond noise, nor stay above chance at four times
        the radius of the threat.
        """
        curve = list(self.accuracies().items())
        found = [
            f"accuracy under PGD-{self.steps} rises from {percent_text(before.accuracy)} at radius "
            f"{smaller:.3g} to {percent_text(after.accuracy)} at {larger:.3g}"
            for (smaller, before), (larger, after) in pairwise(curve)
            if after.low > before.high
        ]
        largest, last = curve[-1]
        if largest >= 4 * self.threat.eps and last.low > 1 / len(self.class_names):
            found.append(
                f"{percent_text(last.accuracy)} withstand PGD-{self.steps} at radius "
                f"{largest:.3g}, more than chance"
            )
        return found

    def by_class(self) -> dict[int, tuple[Number, Number]]:
        """Computes clean and robust accuracy under the threat of each class with images."""
        seen = self.at_threat
        return {
            label: (_accuracy(seen.clean[members]), _accuracy(seen.robust[members]))
            for label in range(len(self.class_names))
            if (members := seen.y == label).any()
        }


def measure_curve(
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
    log: Callable[[str], None],
) -> RobustnessCurve:
    """Attacks images at each radius and at the threat's radius, unless outcomes are saved.

    Args:
        model: on the device of the images.
        digest: of its weights and architecture.
        images: N of them.
        data: their name.
        threat: of the run.
        radii: in [0, 1] pixel units.
        steps: of PGD, each of a quarter of the radius.
        block: see `evaluate_pgd`.
        micro_batch: see `evaluate_pgd`.
        folder: of the saved outcomes.
        heartbeat: called with (images done, images in all); its exceptions end the measurement.
        log: called with a message if outcomes cannot be saved.
    """
    every_eps = sorted({threat.eps, *(eps for eps in radii if eps > 0)})
    total = len(every_eps) * len(images)
    by_radius = {}
    for position, eps in enumerate(every_eps):
        attack = PGDAttack(threat.norm, eps, eps / 4, steps)
        protocol = _protocol(digest, images, attack, block)
        path = folder / f"{threat.norm}-pgd-{steps}-{name_of(protocol)}.safetensors"
        outcomes = read_outcomes(path, protocol)
        if outcomes is None:
            before = position * len(images)

            def beat(done: int, _: int, before: int = before) -> None:
                heartbeat(before + done, total)

            outcomes = attack_images(model, images, attack, block, micro_batch, beat)
            try:
                save(path, as_bytes(outcomes, protocol))
            except StorageError as error:
                log(f"{error}; without the file, the next report attacks again")
        by_radius[eps] = outcomes
        heartbeat((position + 1) * len(images), total)
    names = images.class_names
    return RobustnessCurve(data, images.digest, len(images), names, threat, steps, by_radius)


def _accuracy(correct: Tensor) -> Number:
    """Returns the accuracy of (N,) bool with its interval."""
    right, num = int(correct.sum()), len(correct)
    return Number(right / num, *wilson_interval(right, num))


def _protocol(digest: str, images: ImageSet, attack: PGDAttack, block: int) -> dict[str, Any]:
    """Returns everything that the outcomes depend on, in JSON's types."""
    shared = protocol_of(
        digest,
        images,
        Threat(attack.norm, attack.eps),
        seed=attack.seed,
        block=block,
        device=images.images.device.type,
        threads=torch.get_num_threads(),
    )
    return {**shared, "pgd": {"steps": attack.steps, "alpha": attack.alpha}}
