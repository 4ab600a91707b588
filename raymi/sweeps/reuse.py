"""What trials have in common is trained once: the pretrained classifier, or the estimators as well.

    phase = shared_phase(space, config)                        # of the sweep: how far trials agree
    shared = shared_run(trial, phase, folder)                  # train(..., until=phase)
    trial = with_shared(trial, phase, RunFolder(folder / shared.name))

A trial that reuses ends with the weights, bit for bit, that it would have had without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raymi.config import Config
from raymi.engine.phases import Phase, phases_of, phases_until
from raymi.engine.reuse import reuse_problems
from raymi.engine.run_folder import RunFolder
from raymi.errors import UserError
from raymi.overrides import examine, overlay
from raymi.sweeps.space import Space

_REUSED_BY: Mapping[str, str] = {"estimators": "estimators", "pretraining": "pretrained"}
"""Phases before the classifier's, the last one first; and the key of `mi` that names a run whose
work is reused."""


def shared_phase(space: Space, config: Config) -> str | None:
    """The last phase before the classifier's that trials of a sweep do alike, with all before it.

    It is found from draws of the space, and is a plan: what a trial reuses is decided by its own
    settings (`with_shared`). Trials without the phase (joint ones, or without MI) do not count.

    Args: space; config, of the sweep, over which trials lay what they draw.
    Returns: "estimators" or "pretraining"; None where trials have no such phase, or differ from the
        first one on.
    """
    common = config.model_dump()
    laid = [examine(overlay(common, space.settings(values))) for values in space.samples()]
    trials = [trial for trial, problems in laid if not problems]
    for phase in _REUSED_BY:
        work = [done for trial in trials if (done := _work(trial, phase)) is not None]
        if work and all(done == work[0] for done in work):
            return phase
    return None


def shared_run(trial: Config, phase: str, folder: Path) -> Config | None:
    """The run that does, for all trials of one seed, what they share; to be trained until `phase`.

    Args: trial, any of them; phase, of `shared_phase`; folder, in which the run is.
    Returns: its configuration, with name and place; None where this trial has no such phase.
    """
    if _work(trial, phase) is None:
        return None
    return trial.model_copy(update={"name": f"shared-seed{trial.seed}", "out": folder})


def with_shared(trial: Config, phase: str, run: RunFolder) -> Config:
    """A trial that reuses what a shared run has learnt; as it was where its own phases up to that
    one differ from the run's, or where it has none.

    Raises: UserError where the run has not come to the end of the phase.
    """
    own = _work(trial, phase)
    if own is None or own != _work(run.read_config(), phase):
        return trial
    reused = {"pretrained": None, "estimators": None, _REUSED_BY[phase]: str(run.path)}
    trial = trial.model_copy(update={"mi": trial.mi.model_copy(update=reused)})
    if problems := reuse_problems(trial):
        raise UserError("\n".join(problems))
    return trial


def _work(config: Config, last: str) -> tuple[Phase, ...] | None:
    """The phases up to one, which learn the same in two runs where they are equal; None where there
    is no such phase."""
    if last not in {phase.name for phase in phases_of(config)}:
        return None
    return phases_until(config.model_copy(update={"name": None, "out": None}), last)
