"""What a worker must have to make any step of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import Ensemble
from raymi.data import ImageSet
from raymi.evaluation.blocks import BlockAttacker


class Loadable(Protocol):
    """A classifier that is loaded where it is attacked; can be pickled."""

    def load(self) -> nn.Module:
        """The classifier on the CPU, images in [0, 1] to logits.

        Raises: UserError where it cannot be loaded.
        """


@dataclass(frozen=True)
class Work:
    """An evaluation: classifiers by their names, images, by each name of a classifier the ensembles
    that attack it, threat and seed. Can be pickled."""

    subjects: Mapping[str, Loadable]
    images: ImageSet
    ensembles: Mapping[str, tuple[Ensemble, ...]]
    threat: Threat
    seed: int


class Attackers:
    """What attacks each classifier of a work on one device; it is loaded when it is first asked
    for.

    Args: work; device.
    """

    def __init__(self, work: Work, device: torch.device | str = "cpu") -> None:
        self._work, self._device = work, device
        self._images = work.images.to(device)
        self._loaded: dict[str, BlockAttacker] = {}

    def __call__(self, subject: str) -> BlockAttacker:
        """What attacks the classifier of a name.

        Raises: UserError where it cannot be loaded.
        """
        if subject not in self._loaded:
            work = self._work
            self._loaded[subject] = BlockAttacker(
                work.subjects[subject].load().to(self._device),
                self._images,
                work.ensembles[subject],
                work.threat,
                seed=work.seed,
            )
        return self._loaded[subject]
