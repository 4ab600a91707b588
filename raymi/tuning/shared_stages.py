"""Stages that trials share: pretrained classifiers and estimators, each trained once.

A stage is a run whose name is a digest of all settings that affect its training; the first trial
that needs it trains it. A trial that reuses stages ends with the same weights, bit for bit, as one
that trains everything.
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
"""Phases before the classifier's, in order, with the key of `mi` that names a run to reuse."""


class SharedStage(NamedTuple):
    """Run that is trained until the end of a phase, for other runs to reuse."""

    phase: str
    config: Config

    @property
    def folder(self) -> RunFolder:
        """Folder of the run."""
        assert self.config.out is not None
        assert self.config.name is not None
        return RunFolder(self.config.out / self.config.name)

    @property
    def is_trained(self) -> bool:
        """True once the weights to reuse exist."""
        folder = self.folder
        path = pretrained_path(folder) if self.phase == "pretraining" else folder.estimators
        return path.is_file()


def split_shared_stages(trial: Config, folder: Path) -> tuple[Config, list[SharedStage]]:
    """Splits the stages that other trials can reuse off a trial.

    Args:
        trial: Configuration of the trial.
        folder: Folder of the stages.

    Returns:
        The trial that reuses its stages, and the stages in the order of their training. A joint
        trial has none.
    """
    names = [phase.name for phase in phases_of(trial)]
    whole, stages = trial, []
    for phase, key in _REUSED_BY.items():
        if phase not in names:
            continue
        name = f"{phase}-{_digest(whole, phase)}"
        stages.append(SharedStage(phase, trial.model_copy(update={"name": name, "out": folder})))
        reused: dict[str, Any] = {"pretrained": None, "estimators": None, key: str(folder / name)}
        trial = trial.model_copy(update={"mi": trial.mi.model_copy(update=reused)})
    return trial, stages


def _digest(config: Config, last: str) -> str:
    """Returns a digest of all settings that the phases up to `last` read."""
    phases = phases_until(config.model_copy(update={"name": None, "out": None}), last)
    text = "\n".join(f"{phase.name} {phase.config.model_dump_json()}" for phase in phases)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
