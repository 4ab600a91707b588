"""Options of `python -m raymi.report`, and the words that it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import tiny_config
from tiny_sweeps import begin

from raymi.commands.report.options import plan_report
from raymi.commands.report.run import read_inputs
from raymi.errors import UserError
from raymi.runs.run_folder import RunFolder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder with the runs `one` and `two`, which have only a configuration."""
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


def error_lines(*words: str) -> list[str]:
    """Returns the lines of the error for some words."""
    with pytest.raises(UserError) as raised:
        plan_report(words)
    return str(raised.value).splitlines()


def test_runs_are_names_or_folders(home):
    plan = plan_report(["one", "runs/two"])
    assert [run.name for run in plan.runs] == ["one", "two"]
    assert [run.folder.path for run in plan.runs] == [
        home / "runs" / "one",
        home / "runs" / "two",
    ]
    assert plan.out == home / "reports" / "one-two"
    assert (plan.title, plan.options.samples, plan.options.steps) == ("one, two", 500, 20)
    assert plan.options.radii == ()
    assert plan.command == "python -m raymi.report one runs/two"
    assert plan.is_tracked


def test_a_folder_may_have_an_equals_sign(home):
    made(home / "lr=0.1")
    (run,) = plan_report(["lr=0.1"]).runs
    assert run.name == "lr=0.1"


def test_radii_are_parsed_as_papers_write_them():
    plan = plan_report(["one", "eps=8/255,0,4/255,0.1", "samples=0", "tracking.enabled=false"])
    assert plan.options.radii == (4 / 255, 8 / 255, 0.1)
    assert plan.options.samples == 0
    assert not plan.is_tracked


def test_all_problems_are_in_one_message():
    lines = error_lines("on", "samples=-1", "eps=1,x,-2", "steps=0", "stesp=3", "lr=0.1", "title")
    assert len(lines) == 8
    for expected in (
        "unknown key 'stesp': did you mean steps?",
        "optim.lr is fixed by the runs",
        "no run or sweep 'on'",
        "title: write title=VALUE",
        "samples: expected whole number >= 0, got '-1'",
        "eps: expected radii in pixel units such as 4/255,8/255, got 'x'",
        "eps: expected radii in pixel units such as 4/255,8/255, got '-2'",
        "steps: expected whole number >= 1, got '0'",
    ):
        assert any(expected in line for line in lines), (expected, lines)


def test_a_misspelt_run_gets_a_suggestion():
    assert "did you mean two" in error_lines("tow")[0]
    assert "give at least one run" in error_lines()[0]


def test_a_run_is_given_once(home):
    assert error_lines("one", "runs/one") == ["runs/one: the run one is given twice: keep one"]


def test_runs_with_equal_names_are_shown_with_their_folders(home):
    made(home / "elsewhere" / "one")
    names = [run.name for run in plan_report(["one", "elsewhere/one"]).runs]
    assert names == [str(home / "runs" / "one"), str(home / "elsewhere" / "one")]


def test_folders_of_reports_on_many_runs_have_short_unique_names(home):
    runs = [f"run-with-a-long-name-{k}" for k in range(6)]
    for name in runs:
        made(home / "runs" / name)
    outs = {plan_report(runs[:k]).out.name for k in (4, 5, 6)}
    assert len(outs) == 3
    assert all(len(name) < 80 and "-more-" in name for name in outs)


def test_a_folder_with_other_files_is_refused(home):
    (home / "thesis").mkdir()
    (home / "thesis" / "text.tex").write_text("years")
    assert "not a report" in error_lines("one", "out=thesis")[0]
    (home / "thesis" / "report.json").write_text("{}")
    assert plan_report(["one", "out=thesis"]).out == home / "thesis"


def test_a_sweep_stands_for_its_winner(home):
    sweep = begin(home / "sweeps" / "mine")
    for number in range(2):
        made(sweep.trials / f"{number:04d}")
    assert "has no winner yet" in error_lines("mine")[0]
    journal = sweep.trials / "0001" / "journal.jsonl"
    journal.write_text(json.dumps({"kind": "evaluation", "which": "best", "chosen": True}) + "\n")
    (run,) = plan_report(["mine"]).runs
    assert run.name == "mine/0001"
    assert run.folder.path == sweep.trials / "0001"
    (trial,) = plan_report([str(sweep.trials / "0000")]).runs
    assert trial.name == "mine/0000"
    assert trial.sweep is not None


@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_the_error_names_a_damaged_file(home, name):
    (home / "runs" / "one" / name).write_bytes(b'\xff{"half')
    with pytest.raises(UserError, match=f"{name} is damaged"):
        read_inputs(plan_report(["one"]))


def test_a_run_without_a_model_is_not_attacked():
    (one,) = read_inputs(plan_report(["one"]))
    assert one.images is None
    assert one.model is None
    assert "not finished" in one.notes[0]
