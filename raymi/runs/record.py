"""A run as its journal records it: epochs by phase, evaluations, and the chosen model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from raymi.errors import UserError
from raymi.runs.journal import JournalReader
from raymi.runs.json_files import read_json
from raymi.runs.json_types import TrackingState
from raymi.runs.run_folder import RunFolder

CLASSIFIER = "classifier"
"""The last phase, whose models are evaluated."""

Evaluations = Mapping[str, Mapping[str, Any]]
"""The journal's evaluations on the test set, by model: "best", "last", and averaged ones."""


class EpochRecord(NamedTuple):
    """An epoch of a phase.

    Attributes:
        number: from 1.
        train: means over its steps.
        val: metrics on the validation split; empty where the epoch was not validated.
        better: models that this epoch improved: "best", "best-averaged".
    """

    number: int
    train: Mapping[str, float]
    val: Mapping[str, float]
    better: tuple[str, ...]


@dataclass(frozen=True)
class RunRecord:
    """Events of a run in order; the last of several equal ones counts, as after a crash.

    Attributes:
        events: of the journal.
    """

    events: Sequence[Mapping[str, Any]]

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """Returns the events of a kind, in order."""
        return [event for event in self.events if event["kind"] == kind]

    @property
    def start(self) -> Mapping[str, Any]:
        """The last start of a session; empty before the first one."""
        starts = self.of_kind("start")
        return starts[-1] if starts else {}

    @cached_property
    def phases(self) -> Mapping[str, tuple[EpochRecord, ...]]:
        """Epochs by phase, both in order; only phases with an epoch."""
        epochs: dict[str, dict[int, EpochRecord]] = {p: {} for p in self.start.get("phases", ())}
        for event in self.of_kind("epoch"):
            number = int(event["epoch"])
            train, val = numbers(event["train"]), numbers(event["val"])
            record = EpochRecord(number, train, val, tuple(event["better"]))
            epochs.setdefault(event["phase"], {})[number] = record
        return {
            phase: tuple(by_number[number] for number in sorted(by_number))
            for phase, by_number in epochs.items()
            if by_number
        }

    @cached_property
    def evaluations(self) -> Evaluations:
        """Evaluations on the test set by model."""
        return {event["which"]: event for event in self.of_kind("evaluation")}

    @property
    def chosen(self) -> str:
        """The model with the highest robust validation accuracy; "best" before an evaluation."""
        return chosen_model(self.evaluations)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Messages of the warnings, each once."""
        return tuple(dict.fromkeys(event["message"] for event in self.of_kind("warning")))

    @property
    def finished(self) -> bool:
        """True once the run has finished."""
        return bool(self.of_kind("finished"))

    @property
    def is_evaluated(self) -> bool:
        """True once the run has finished after an evaluation, so that no model's is missing."""
        kinds = [event["kind"] for event in self.events if event["kind"] in _EVALUATED]
        return kinds[-1:] == ["finished"] and "evaluation" in kinds

    @property
    def restarts(self) -> list[str]:
        """A line for each session after the first one: where it began, and why."""
        lines: list[str] = []
        before: Mapping[str, Any] | None = None
        kind = ""
        for event in self.events:
            if event["kind"] == "start":
                if before is not None:
                    cause = "a stop" if kind == "stopped" else "an interruption"
                    workers = [str(one.get("workers", "-")) for one in (before, event)]
                    line = f"at step {event['global_step']} after {cause}"
                    changed = f", {' -> '.join(workers)} workers" if len(set(workers)) > 1 else ""
                    lines.append(line + changed)
                before = event
            kind = event["kind"]
        return lines

    @property
    def minutes(self) -> float:
        """Minutes of all sessions, without the time between a stop and the next start.

        A clock that jumps back between two events adds nothing.
        """
        seconds, last = 0.0, None
        for event in self.events:
            if last is not None and event["kind"] != "start":
                seconds += max(0.0, event["time"] - last)
            last = event["time"]
        return seconds / 60

    def best_epoch(self, which: str = "best") -> int | None:
        """Returns the epoch of a model: the evaluated one, or the last one that was better.

        Args:
            which: "best" or "best-averaged".
        """
        if which in self.evaluations:
            return int(self.evaluations[which]["of_epoch"])
        epochs = self.phases.get(CLASSIFIER, ())
        return next((one.number for one in reversed(epochs) if which in one.better), None)

    def validation(self, which: str, epoch: int) -> Mapping[str, float]:
        """Returns the validation metrics of a model after an epoch; empty: not validated.

        Args:
            which: of the run's models; only its averaging matters.
            epoch: of the classifier.
        """
        epochs = {one.number: one for one in self.phases.get(CLASSIFIER, ())}
        if epoch not in epochs:
            return {}
        prefix = "averaged/" if is_averaged(which) else ""
        val = epochs[epoch].val.items()
        return {name.removeprefix(prefix): v for name, v in val if name.startswith(prefix)}


_EVALUATED = ("evaluation", "finished")


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Converts metrics of the journal, where NaN and infinities are words, to floats."""
    return {name: float(value) for name, value in values.items()}


def is_averaged(which: str) -> bool:
    """Returns whether a model of a run has averaged weights."""
    return which.endswith("-averaged")


def chosen_model(evaluations: Evaluations) -> str:
    """Returns the model that a run has chosen among its evaluated ones; "best" without any."""
    return next((which for which, event in evaluations.items() if event["chosen"]), "best")


def read_record(folder: RunFolder) -> RunRecord:
    """Reads the record of a run, finished or not."""
    return RunRecord(JournalReader(folder.journal).new_events())


def warning_lines(folders: Sequence[RunFolder]) -> list[str]:
    """Returns a line for each warning in the journals of runs, with the number of runs."""
    counts = Counter(text for folder in folders for text in read_record(folder).warnings)
    return [f"warning in {num} of {len(folders)} runs: {text}" for text, num in counts.items()]


def read_tracking(folder: RunFolder) -> dict[str, Any]:
    """Reads where MLflow has a run and how much of it was delivered; empty before tracking.

    Raises:
        UserError: the file is damaged.
    """
    if not folder.tracking.is_file():
        return {}
    remedy = (
        f"remove it, and the run {folder.name} counts as not tracked until it is continued, which "
        "finds it in MLflow"
    )
    return read_json(folder.tracking, TrackingState, remedy).model_dump()


def data_of(folder: RunFolder) -> Mapping[str, Any]:
    """Reads the data set that a run was trained on: name, classes, size, mean and std.

    Raises:
        UserError: its journal lacks it.
    """
    start = read_record(folder).start
    if not start:
        raise UserError(
            f"{folder.journal} does not say what the run {folder.name} was trained on: bring back "
            "the journal as it was, or train the run again"
        )
    data: Mapping[str, Any] = start["data"]
    return data


def evaluations_of(folder: RunFolder) -> Evaluations:
    """Reads the evaluations of a finished run.

    Raises:
        UserError: its journal has none.
    """
    evaluations = read_record(folder).evaluations
    if not evaluations:
        raise UserError(
            f"{folder.journal} is damaged: expected the evaluations of the finished run, got none: "
            "bring back the journal as it was, or train the run again"
        )
    return evaluations
