"""Worker job: everything that a worker needs to run any step of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import Ensemble
from raymi.data import ImageSet
from raymi.evaluation.blocks import BlockAttacker
from raymi.evaluation.fingerprint import Fingerprint, check_outputs, check_unchanged
from raymi.evaluation.model_source import ModelSource
from raymi.given import register


@dataclass(frozen=True)
class WorkerJob:
    """Picklable description of an evaluation.

    Args:
        sources: classifiers by name.
        images: all images of the evaluation.
        ensembles: attacks on each classifier, by its name.
        threat: norm and radius.
        seed: of all attacks.
        fingerprint: of the classifiers, by name; a worker refuses one with other outputs.
        objects: objects from Python that the sources name, see `raymi.given`.
    """

    sources: Mapping[str, ModelSource]
    images: ImageSet
    ensembles: Mapping[str, tuple[Ensemble, ...]]
    threat: Threat
    seed: int
    fingerprint: Mapping[str, Fingerprint | None] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)


class Attackers:
    """Attackers of a job's classifiers on one device; each is loaded on first use.

    Args:
        job: classifiers, images and attacks.
        device: where attacks run.
    """

    def __init__(self, job: WorkerJob, device: torch.device | str = "cpu") -> None:
        if torch.device(device).type == "cuda":
            _use_exact_kernels()
        register(job.objects)
        self._job, self._device = job, device
        self._images = job.images.to(device)
        self._loaded: dict[str, BlockAttacker] = {}

    def __call__(self, source: str) -> BlockAttacker:
        """Returns the attacker of a classifier.

        Raises:
            UserError: the classifier cannot be loaded, or has other outputs than its fingerprint.
        """
        if source not in self._loaded:
            job = self._job
            model = job.sources[source].load().to(self._device)
            fingerprint = job.fingerprint.get(source)
            check_outputs(source, model, self._images, fingerprint)
            self._loaded[source] = BlockAttacker(
                model,
                self._images,
                job.ensembles[source],
                job.threat,
                seed=job.seed,
                check=partial(check_unchanged, model, self._images, fingerprint),
            )
        return self._loaded[source]


def _use_exact_kernels() -> None:
    """Selects deterministic kernels in full fp32; the user's module may have set others."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
