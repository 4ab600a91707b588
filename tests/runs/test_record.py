"""The record of a run: epochs, the chosen model, and warnings of several runs together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raymi.errors import UserError
from raymi.runs.journal import Journal
from raymi.runs.record import RunRecord, evaluations_of, read_record, warning_lines
from raymi.runs.run_folder import RunFolder


def run_with_warnings(path: Path, *messages: str) -> RunFolder:
    folder = RunFolder(path)
    journal = Journal(folder.journal)
    for message in messages:
        journal.write("warning", message=message)
    journal.close()
    return folder


def test_a_warning_of_several_runs_is_one_line_with_their_number(tmp_path: Path) -> None:
    first = run_with_warnings(tmp_path / "a", "MI dominates", "MI dominates", "copies")
    second = run_with_warnings(tmp_path / "b", "copies")
    silent = RunFolder(tmp_path / "c")
    assert warning_lines([first, second, silent]) == [
        "warning in 1 of 3 runs: MI dominates",
        "warning in 2 of 3 runs: copies",
    ]


def epoch(number: int, robust: float, *better: str, phase: str = "classifier") -> dict[str, Any]:
    val = {"robust_acc": robust, "averaged/robust_acc": robust + 0.5}
    return {
        "kind": "epoch", "phase": phase, "epoch": number, "train": {"loss": "inf"}, "val": val,
        "better": list(better),
    }  # fmt: skip


def evaluation(which: str, of_epoch: int, *, chosen: bool = False) -> dict[str, Any]:
    return {"kind": "evaluation", "which": which, "of_epoch": of_epoch, "chosen": chosen}


def test_epochs_are_grouped_by_phase_and_the_last_of_equal_ones_counts() -> None:
    start = {"kind": "start", "phases": {"pretraining": 1, "estimators": 1, "classifier": 2}}
    events = [
        epoch(2, 0.2),
        epoch(1, 0.1),
        epoch(1, 0.3, "best"),
        epoch(1, 0.9, phase="pretraining"),
    ]
    record = RunRecord([start, *events])
    assert list(record.phases) == ["pretraining", "classifier"]
    assert [one.number for one in record.phases["classifier"]] == [1, 2]
    assert record.phases["classifier"][0].val["robust_acc"] == 0.3
    assert record.phases["classifier"][0].train == {"loss": float("inf")}
    assert record.best_epoch() == 1
    assert record.validation("last", 2)["robust_acc"] == 0.2
    assert record.validation("last-averaged", 2) == {"robust_acc": 0.7}
    assert record.validation("last", 3) == {}


def test_the_chosen_model_is_best_before_an_evaluation_chooses_one() -> None:
    assert RunRecord([]).chosen == "best"
    events = [
        evaluation("last", 2),
        evaluation("best", 1),
        evaluation("best-averaged", 2, chosen=True),
    ]
    record = RunRecord(events)
    assert record.chosen == "best-averaged"
    assert record.best_epoch("best") == 1


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("", False),
        ("finished", False),
        ("evaluation", False),
        ("evaluation finished", True),
        ("evaluation evaluation finished start step", True),
        ("finished start evaluation", False),
        ("finished start evaluation finished", True),
    ],
)
def test_a_run_is_evaluated_once_it_finished_after_an_evaluation(
    kinds: str, expected: bool
) -> None:
    assert RunRecord([{"kind": kind} for kind in kinds.split()]).is_evaluated == expected


def test_a_finished_run_without_evaluations_is_damaged(tmp_path: Path) -> None:
    folder = run_with_warnings(tmp_path, "copies", "copies")
    assert read_record(folder).warnings == ("copies",)
    with pytest.raises(UserError, match="expected the evaluations of the finished run, got none"):
        evaluations_of(folder)
