"""What trials have in common is trained once: pretrained classifiers, and estimators.

A part is a run of its own, named by all that decides what it learns, and trained by the first trial
that needs it. A trial that reuses ends with the weights, bit for bit, that it would have had
without.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from raymi.config import Config
from raymi.engine.phases import phases_of, phases_until
from raymi.runs.pretrained import pretrained_path
from raymi.runs.run_folder import RunFolder

_REUSED_BY = {"pretraining": "pretrained", "estimators": "estimators"}
"""Phases before the classifier's, in order; and the key of `mi` that names a run whose work is
reused."""


class Part(NamedTuple):
    """A run that is trained until a phase, for others."""

    phase: str
    config: Config

    @property
    def folder(self) -> RunFolder:
        """Where the run is."""
        assert self.config.out is not None
        assert self.config.name is not None
        return RunFolder(self.config.out / self.config.name)

    @property
    def is_there(self) -> bool:
        """Whether what others reuse is there."""
        folder = self.folder
        path = pretrained_path(folder) if self.phase == "pretraining" else folder.estimators
        return path.is_file()


def parts_of(trial: Config, folder: Path) -> tuple[Config, list[Part]]:
    """Splits what trials may share off a trial.

    Args: trial; folder, in which the parts are.
    Returns: the trial that reuses its parts, and these, in the order in which they must be there.
        A joint trial has none.
    """
    names = [phase.name for phase in phases_of(trial)]
    whole, parts = trial, []
    for phase, key in _REUSED_BY.items():
        if phase not in names:
            continue
        name = f"{phase}-{_digest(whole, phase)}"
        parts.append(Part(phase, trial.model_copy(update={"name": name, "out": folder})))
        reused: dict[str, Any] = {"pretrained": None, "estimators": None, key: str(folder / name)}
        trial = trial.model_copy(update={"mi": trial.mi.model_copy(update=reused)})
    return trial, parts


def _digest(config: Config, last: str) -> str:
    """Of all that phases up to one do: they learn the same in two runs where it is equal."""
    phases = phases_until(config.model_copy(update={"name": None, "out": None}), last)
    told = "\n".join(f"{phase.name} {phase.config.model_dump_json()}" for phase in phases)
    return hashlib.sha256(told.encode()).hexdigest()[:12]
