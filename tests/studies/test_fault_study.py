"""The study of faults: how outcomes are counted, and real malformed inputs."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from raymi_command import environment

from studies.faults.case import Case
from studies.faults.forked import STARTED, Ended
from studies.faults.inputs import cases, outcome
from studies.faults.record import Fault, load, save, table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("code", "err", "expected"),
    [
        (2, "error: no", "refused"),
        (0, "", "silent"),
        (STARTED, "", "silent"),
        (None, "", "hang"),
        (1, "Traceback (most recent call last)\nerror: no", "traceback"),
        (-9, "", "lost"),
    ],
)
def test_end_of_a_command_is_classified(code: int | None, err: str, expected: str) -> None:
    case = Case("word", "train", ("x=1",), "x")
    assert outcome(case, Ended(code, "", err)) == expected


def test_a_valid_input_may_be_accepted() -> None:
    case = Case("word", "train", ("x=1",), "x", invalid=False)
    assert outcome(case, Ended(0, "", "")) == "accepted"


def test_the_table_counts_faults_by_kind_with_a_line_of_totals(tmp_path: Path) -> None:
    faults = [
        Fault("word", "train", "a", "refused", "no \udcff"),
        Fault("word", "tune", "b", "traceback"),
        Fault("labels", "train", "c", "refused"),
    ]
    save(faults, tmp_path / "results" / "inputs.json")
    assert load(tmp_path / "results" / "inputs.json") == faults
    assert table(faults).splitlines() == [
        "| fault | tried | refused | traceback | silent | hang | lost |",
        "| --- | --: | --: | --: | --: | --: | --: |",
        "| word | 2 | 1 | 1 | 0 | 0 | 0 |",
        "| labels | 1 | 1 | 0 | 0 | 0 | 0 |",
        "| **all** | 3 | 2 | 1 | 0 | 0 | 0 |",
    ]


def test_a_seed_draws_the_same_inputs_of_every_kind() -> None:
    first, second = (list(cases(random.Random(3), 18)) for _ in range(2))
    assert [case.words for case in first] == [case.words for case in second]
    assert len({case.kind for case in first}) == 8


@pytest.mark.exhaustive
def test_malformed_inputs_of_every_kind_are_refused(tmp_path: Path) -> None:
    for name in ("studies", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    subprocess.run(
        [sys.executable, "-m", "studies.faults", "inputs", "inputs=27", "seed=5"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        check=True,
    )
    faults = json.loads((tmp_path / "studies" / "faults" / "results" / "inputs.json").read_text())
    assert len(faults) == 27
    assert [fault for fault in faults if fault["outcome"] not in ("refused", "accepted")] == []
    assert "| **all** | 27 |" in (tmp_path / "docs" / "faults.md").read_text()
