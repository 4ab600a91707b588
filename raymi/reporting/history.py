"""A run as its own record tells it: curves by phase, what was measured at the end, and by whom."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raymi.config import Config
from raymi.runs.json_files import read_json_or_none
from raymi.runs.json_types import SavedProbe
from raymi.runs.record import RunRecord, numbers, read_record
from raymi.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Probe:
    """Fresh estimators on a finished classifier: which of the run's models; estimates in nats, by
    the names of `MIEstimates`; and everything that has to be the same where two are compared."""

    which: str
    estimates: Mapping[str, float]
    settings: str


@dataclass(frozen=True, kw_only=True)
class History(RunRecord):
    """The record of a run with its name, configuration and probe.

    Attributes:
        name: of the run.
        config: resolved.
        about: recipe, command, versions; may be empty.
        probe: of the chosen model; None without one.
    """

    name: str
    config: Config
    about: Mapping[str, Any]
    probe: Probe | None


def read_history(folder: RunFolder, name: str | None = None) -> History:
    """Reads a run, finished or not.

    Args:
        folder: of the run.
        name: to show for the run; None: its own.

    Raises:
        UserError: the folder or its journal is no run's of this version.
    """
    config, record = folder.read_config(), read_record(folder)
    probes = [*_probes_of_training(config, record.of_kind("probe")), *_probes_afterwards(folder)]
    probes = [probe for probe in probes if probe.which == record.chosen]
    history = History(
        record.events,
        name=name or folder.name,
        config=config,
        about=folder.read_about(),
        probe=probes[-1] if probes else None,
    )
    _ = history.phases, history.warnings  # parsed now, so that damage is found before any work
    return history


def _probes_of_training(config: Config, events: Iterable[Mapping[str, Any]]) -> list[Probe]:
    settings = _as_text(
        config.probe.model_dump(), str(config.attack), config.validation.model_dump()
    )
    return [Probe(event["which"], numbers(event["estimates"]), settings) for event in events]


def _probes_afterwards(folder: RunFolder) -> list[Probe]:
    """Reads the estimates of `raymi.probe`, which replace the estimates of the training."""
    found = []
    for path in sorted(folder.path.glob("probe-*.json")):
        without = "it is left out, measure again with python -m raymi.probe"
        if (kept := read_json_or_none(path, SavedProbe, without)) is not None:
            settings = _as_text(kept.probe, kept.attack, kept.validation)
            found.append(Probe(kept.model, numbers(kept.estimates), settings))
    return found


def _as_text(probe: Mapping[str, Any], attack: str, validation: Mapping[str, Any]) -> str:
    settings = {"probe": dict(probe), "attack": attack, "validation": dict(validation)}
    return json.dumps(settings, sort_keys=True)
