"""A run as its folder has it: configuration, beginning, measurements, and the chosen model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymi.errors import UserError
from raymi.runs.journal import JournalReader
from raymi.runs.kept_json import read_kept
from raymi.runs.records import Delivered
from raymi.runs.run_folder import RunFolder

FIRST = "best"
"""The model of a run that stands for it before the run has chosen one."""


@dataclass(frozen=True)
class RunRecord:
    """Events of a run in order; of events that a crash made twice, the last one counts.

    Attributes:
        events: of the journal.
    """

    events: Sequence[Mapping[str, Any]]

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """Returns the events of a kind, in order."""
        return [event for event in self.events if event["kind"] == kind]

    @property
    def start(self) -> Mapping[str, Any]:
        """The last beginning of a session; empty before a run has begun."""
        starts = self.of_kind("start")
        return starts[-1] if starts else {}

    @property
    def evaluations(self) -> dict[str, Mapping[str, Any]]:
        """Evaluations on the test set by model: "best", "last", and averaged ones."""
        return {event["which"]: event for event in self.of_kind("evaluation")}

    @property
    def chosen(self) -> str:
        """The model with the highest robust validation accuracy; "best" before an evaluation."""
        return chosen_model(self.evaluations)

    @property
    def finished(self) -> bool:
        """True once the run has finished."""
        return bool(self.of_kind("finished"))


def read_record(folder: RunFolder) -> RunRecord:
    """Returns the record of a run, which may go on meanwhile."""
    return RunRecord(JournalReader(folder.journal).new_events())


def warning_lines(folders: Sequence[RunFolder]) -> list[str]:
    """Returns a line for each warning in the journals of runs, with the number of runs."""
    counts: Counter[str] = Counter()
    for folder in folders:
        found = [event["message"] for event in read_record(folder).of_kind("warning")]
        counts.update(dict.fromkeys(found, 1))
    return [f"warning in {num} of {len(folders)} runs: {text}" for text, num in counts.items()]


def read_delivered(folder: RunFolder) -> dict[str, Any]:
    """Returns where MLflow has a run and how far it is delivered; empty before it is tracked.

    Raises: UserError where the file that says so is damaged.
    """
    if not folder.tracking.is_file():
        return {}
    remedy = (
        f"remove it, and the run {folder.name} is taken for one that is not in MLflow; "
        "continued, it is found there again"
    )
    return read_kept(folder.tracking, Delivered, remedy).model_dump()


def chosen_model(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the model that a run has chosen among its evaluated ones; "best" before it has."""
    return next((which for which, event in evaluations.items() if event["chosen"]), FIRST)


def data_of(folder: RunFolder, events: Iterable[Mapping[str, Any]] | None = None) -> Any:
    """Returns the data set that a run was trained on: name, classes, size, mean and std.

    Args:
        folder: of the run.
        events: of its journal; None: they are read.

    Raises:
        UserError: its journal does not say.
    """
    record = read_record(folder) if events is None else RunRecord(list(events))
    if not record.start:
        raise UserError(
            f"{folder.journal} does not say what the run {folder.name} was trained on: bring back "
            "the journal as it was, or train the run again"
        )
    return record.start["data"]


def evaluations_of(folder: RunFolder) -> dict[str, Mapping[str, Any]]:
    """Returns the evaluations of a finished run.

    Raises: UserError where its journal has none.
    """
    found = read_record(folder).evaluations
    if not found:
        raise missing_evaluations(folder)
    return found


def missing_evaluations(folder: RunFolder) -> UserError:
    """Returns the error of a finished run whose journal has no evaluation."""
    return UserError(
        f"{folder.journal} is damaged: expected the evaluations of the finished run, got none: "
        "bring back the journal as it was, or train the run again"
    )
