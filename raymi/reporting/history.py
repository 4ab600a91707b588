"""A run as its own record tells it: curves by phase, what was measured at the end, and by whom."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raymi.config import Config
from raymi.runs.kept_json import read_kept_or_none
from raymi.runs.record import chosen_model, read_record
from raymi.runs.records import KeptProbe
from raymi.runs.run_folder import RunFolder

Event = Mapping[str, Any]

CLASSIFIER = "classifier"
"""The phase that trains what a run is made for."""


@dataclass(frozen=True)
class Epoch:
    """An epoch of a phase: means over its steps, what was measured on validation (empty where it
    was not), and which models were the best so far after it: "best", "best-averaged"."""

    number: int
    train: Mapping[str, float]
    val: Mapping[str, float]
    better: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """Fresh estimators on a finished classifier: which of the run's models; estimates in nats, by
    the names of `MIObserver`; and everything that has to be the same where two are compared."""

    which: str
    estimates: Mapping[str, float]
    settings: str


@dataclass(frozen=True)
class History:
    """What the folder of a run says.

    Args:
        name: of the run.
        config: resolved.
        about: recipe, command, versions; empty where nobody kept them.
        start: the journal's last "start"; empty before a run has begun.
        phases: by name, in order, their epochs.
        evaluations: the journal's, by the name of the model.
        probe: of the chosen model; None where there is none.
        warnings: of the alarms, each once.
        finished: whether the run has come to its end.
    """

    name: str
    config: Config
    about: Mapping[str, Any]
    start: Event
    phases: Mapping[str, tuple[Epoch, ...]]
    evaluations: Mapping[str, Event]
    probe: Probe | None
    warnings: tuple[str, ...]
    finished: bool

    @property
    def chosen(self) -> str:
        """The model with the highest robust validation accuracy; "best" before an evaluation."""
        return chosen_model(self.evaluations)

    def best_epoch(self, which: str = "best") -> int | None:
        """The epoch of a model of the classifier, "best" or "best-averaged": where the run has
        measured it, that of this measurement; None before there is any."""
        if which in self.evaluations:
            return int(self.evaluations[which]["of_epoch"])
        epochs = self.phases.get(CLASSIFIER, ())
        return next((one.number for one in reversed(epochs) if which in one.better), None)


def read_history(folder: RunFolder, name: str | None = None) -> History:
    """What a run's folder says by now, also of a run that goes on.

    Args: folder; name to call the run by, None: its own.
    Raises: UserError where it is no run's folder, or of another version, or its journal says what
        no run of raymi says.
    """
    config, record = folder.read_config(), read_record(folder)
    history = History(
        name=name or folder.name,
        config=config,
        about=folder.read_about(),
        start=record.start,
        phases=_phases(record.start, record.of_kind("epoch")),
        evaluations=record.evaluations,
        probe=None,
        warnings=tuple(dict.fromkeys(event["message"] for event in record.of_kind("warning"))),
        finished=record.finished,
    )
    probes = [*_probes_of_training(config, record.of_kind("probe")), *_probes_afterwards(folder)]
    ours = [probe for probe in probes if probe.which == history.chosen]
    return replace(history, probe=ours[-1] if ours else None)


def _phases(start: Event, events: Iterable[Event]) -> dict[str, tuple[Epoch, ...]]:
    """Of an epoch that was made again after a crash, the last one counts."""
    found: dict[str, dict[int, Epoch]] = {name: {} for name in start.get("phases", ())}
    for event in events:
        number = int(event["epoch"])
        train, val = _numbers(event["train"]), _numbers(event["val"])
        better = tuple(event.get("better", ["best"] if event.get("is_best") else []))
        found.setdefault(event["phase"], {})[number] = Epoch(number, train, val, better)
    return {
        phase: tuple(epochs[number] for number in sorted(epochs))
        for phase, epochs in found.items()
        if epochs
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _probes_of_training(config: Config, events: Iterable[Event]) -> list[Probe]:
    settings = _as_text(
        config.probe.model_dump(), str(config.attack), config.validation.model_dump()
    )
    return [Probe(event["which"], _numbers(event["estimates"]), settings) for event in events]


def _probes_afterwards(folder: RunFolder) -> list[Probe]:
    """Reads the estimates of `raymi.probe`, which replace the estimates of the training."""
    found = []
    for path in sorted(folder.path.glob("probe-*.json")):
        without = "it is left out, measure again with python -m raymi.probe"
        if (kept := read_kept_or_none(path, KeptProbe, without)) is not None:
            settings = _as_text(kept.probe, kept.attack, kept.validation)
            found.append(Probe(kept.model, _numbers(kept.estimates), settings))
    return found


def _as_text(probe: Mapping[str, Any], attack: str, validation: Mapping[str, Any]) -> str:
    settings = {"probe": dict(probe), "attack": attack, "validation": dict(validation)}
    return json.dumps(settings, sort_keys=True)
