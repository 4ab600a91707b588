"""What `python -m raymi.report` is asked for, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import tiny_config
from tiny_sweeps import begin

from raymi.commands.report.options import requested
from raymi.commands.report.run import is_tracked, planned
from raymi.errors import UserError
from raymi.runs.run_folder import RunFolder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the runs `one` and `two`, which have only begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for name in ("one", "two"):
        made(tmp_path / "runs" / name)
    return tmp_path


def made(path: Path) -> RunFolder:
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write_config(tiny_config())
    return folder


def told(*words: str) -> list[str]:
    """The lines of the error that words end with."""
    with pytest.raises(UserError) as raised:
        requested(words)
    return str(raised.value).splitlines()


def test_runs_are_named_or_are_folders(home):
    request = requested(["one", "runs/two"])
    assert [asked.name for asked in request.runs] == ["one", "two"]
    assert [asked.folder.path for asked in request.runs] == [
        home / "runs" / "one",
        home / "runs" / "two",
    ]
    assert request.out == home / "reports" / "one-two"
    assert (request.title, request.samples, request.steps) == ("one, two", 500, 20)
    assert request.radii == ()
    assert request.command == "python -m raymi.report one runs/two"
    assert is_tracked(request)


def test_a_folder_may_have_an_equals_sign(home):
    made(home / "lr=0.1")
    (asked,) = requested(["lr=0.1"]).runs
    assert asked.name == "lr=0.1"


def test_radii_are_written_as_in_papers():
    request = requested(["one", "eps=8/255,0,4/255,0.1", "samples=0", "tracking.enabled=false"])
    assert request.radii == (4 / 255, 8 / 255, 0.1)
    assert request.samples == 0
    assert not is_tracked(request)


def test_everything_that_is_wrong_is_said_at_once():
    lines = told("on", "samples=-1", "eps=1,x,-2", "steps=0", "stesp=3", "lr=0.1", "title")
    assert len(lines) == 8
    for expected in (
        "unknown key 'stesp': did you mean steps?",
        "optim.lr belongs to the runs and cannot change",
        "no run or sweep 'on'",
        "title: write title=VALUE",
        "samples: expected whole number >= 0, got '-1'",
        "eps: expected radii in pixel units such as 4/255,8/255, got 'x'",
        "eps: expected radii in pixel units such as 4/255,8/255, got '-2'",
        "steps: expected whole number >= 1, got '0'",
    ):
        assert any(expected in line for line in lines), (expected, lines)


def test_a_misspelt_run_gets_a_suggestion():
    assert "did you mean two or one?" in told("tow")[0] or "did you mean two?" in told("tow")[0]
    assert "a run is needed" in told()[0]


def test_a_run_is_given_once(home):
    assert told("one", "runs/one") == ["runs/one: the run one is given twice: keep one"]


def test_runs_of_one_name_are_told_apart(home):
    made(home / "elsewhere" / "one")
    names = [asked.name for asked in requested(["one", "elsewhere/one"]).runs]
    assert names == [str(home / "runs" / "one"), str(home / "elsewhere" / "one")]


def test_reports_of_many_runs_have_a_short_name_of_their_own(home):
    runs = [f"run-with-a-long-name-{k}" for k in range(6)]
    for name in runs:
        made(home / "runs" / name)
    outs = {requested(runs[:k]).out.name for k in (4, 5, 6)}
    assert len(outs) == 3
    assert all(len(name) < 80 and "-more-" in name for name in outs)


def test_a_folder_that_is_no_report_is_refused(home):
    (home / "thesis").mkdir()
    (home / "thesis" / "text.tex").write_text("years")
    assert "is no report" in told("one", "out=thesis")[0]
    (home / "thesis" / "report.json").write_text("{}")
    assert requested(["one", "out=thesis"]).out == home / "thesis"


def test_a_sweep_stands_for_the_run_that_won(home):
    sweep = begin(home / "sweeps" / "mine")
    for number in range(2):
        made(sweep.trials / f"{number:04d}")
    assert "has no winner yet" in told("mine")[0]
    journal = sweep.trials / "0001" / "journal.jsonl"
    journal.write_text(json.dumps({"kind": "evaluation", "which": "best", "chosen": True}) + "\n")
    (asked,) = requested(["mine"]).runs
    assert asked.name == "mine/0001"
    assert asked.folder.path == sweep.trials / "0001"
    (trial,) = requested([str(sweep.trials / "0000")]).runs
    assert trial.name == "mine/0000"
    assert trial.sweep is not None


@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_damaged_file_is_named(home, name):
    (home / "runs" / "one" / name).write_bytes(b'\xff{"half')
    with pytest.raises(UserError, match=f"{name} is damaged"):
        planned(requested(["one"]))


def test_a_run_that_has_only_begun_is_not_attacked():
    (plan,) = planned(requested(["one"]))
    assert plan.images is None
    assert plan.found is None
    assert "it is not finished" in plan.notes[0]
