"""What a worker must have to make any step of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import nn

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import Ensemble
from raymi.data import ImageSet
from raymi.evaluation.blocks import BlockAttacker
from raymi.evaluation.fingerprint import Fingerprint, check_outputs, check_unchanged


class Loadable(Protocol):
    """A classifier that is loaded where it is attacked; can be pickled."""

    def load(self) -> nn.Module:
        """The classifier on the CPU, images in [0, 1] to logits.

        Raises: UserError where it cannot be loaded.
        """


@dataclass(frozen=True)
class WorkerJob:
    """An evaluation, as far as a step depends on it. Can be pickled.

    Args:
        subjects: classifiers by their names.
        images: all that are attacked.
        ensembles: those that attack each classifier, by its name.
        threat: what they may do.
        seed: of all that is random.
        known_by: what the classifiers answer, by their names; a worker where one answers otherwise
            refuses it.
    """

    sources: Mapping[str, Loadable]
    images: ImageSet
    ensembles: Mapping[str, tuple[Ensemble, ...]]
    threat: Threat
    seed: int
    fingerprint: Mapping[str, Fingerprint | None] = field(default_factory=dict)


class Attackers:
    """What attacks each classifier of a work on one device; it is loaded when it is first asked
    for.

    Args: work; device.
    """

    def __init__(self, work: WorkerJob, device: torch.device | str = "cpu") -> None:
        if torch.device(device).type == "cuda":
            _use_exact_kernels()
        self._work, self._device = work, device
        self._images = work.images.to(device)
        self._loaded: dict[str, BlockAttacker] = {}

    def __call__(self, source: str) -> BlockAttacker:
        """What attacks the classifier of a name.

        Raises: UserError where it cannot be loaded, or answers otherwise than it should.
        """
        if source not in self._loaded:
            work = self._work
            model = work.sources[source].load().to(self._device)
            fingerprint = work.fingerprint.get(source)
            check_outputs(source, model, self._images, fingerprint)
            self._loaded[source] = BlockAttacker(
                model,
                self._images,
                work.ensembles[source],
                work.threat,
                seed=work.seed,
                check=partial(check_unchanged, model, self._images, fingerprint),
            )
        return self._loaded[source]


def _use_exact_kernels() -> None:
    """Kernels that give the same each time, in full fp32, whatever the user's module has set."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
