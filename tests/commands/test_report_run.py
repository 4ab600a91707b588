"""A report from its plan to its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_runs
from tiny_sweeps import begin

from raymi.commands.report.options import plan_report
from raymi.commands.report.run import MULTIPLES, make_report, read_inputs, upload_report
from raymi.errors import UserError
from raymi.runs.run_folder import RunFolder
from raymi.tuning.sweep_folder import TrialRun


def trained(path: Path, **settings: object) -> RunFolder:
    folder = RunFolder(path)
    tiny_runs.tiny_run(0, 1, path, settings, [])
    folder.write_config(tiny_runs.tiny_config(settings))
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    return tmp_path


def report(*words: str) -> tuple[list[str], list[tuple[str, int, int]]]:
    """Makes a report; returns its warnings and progress."""
    lines: list[str] = []
    beats: list[tuple[str, int, int]] = []
    plan = plan_report(words)
    inputs = read_inputs(plan)
    files = make_report(plan, inputs, lines.append, lambda *beat: beats.append(beat))
    assert files[-1].is_file()
    assert list(upload_report(plan, inputs, files)) == [], "the runs are not in MLflow"
    return lines, beats


def test_each_run_is_attacked_at_multiples_of_its_own_radius(home):
    trained(home / "runs" / "a")
    trained(home / "runs" / "b", **{"attack.norm": "l2", "attack.eps": 0.5})
    lines, beats = report("a", "b", "samples=30", "steps=1")
    assert [line for line in lines if "sign of false robustness" not in line] == []
    for name, norm in (("a", "linf"), ("b", "l2")):
        kept = list((home / "runs" / name / "report").glob(f"{norm}-pgd-1-*.safetensors"))
        assert len(kept) == len(MULTIPLES)
        assert (name, 30 * len(MULTIPLES), 30 * len(MULTIPLES)) in beats


def test_radii_over_1_are_left_out_in_linf(home):
    trained(home / "runs" / "a", **{"attack.eps": 0.6})
    report("a", "samples=10", "steps=1")
    kept = list((home / "runs" / "a" / "report").glob("*.safetensors"))
    assert len(kept) == sum(0.6 * multiple <= 1 for multiple in MULTIPLES) == 5


def test_a_report_without_attacks_has_the_accuracies_of_the_training(home):
    folder = trained(home / "runs" / "a")
    _, beats = report("a", "samples=0")
    assert beats == []
    assert not (folder.path / "report").exists()

    known = json.loads((home / "reports" / "a" / "report.json").read_text())["tables"]
    folder.weights("best").unlink()
    (one,) = read_inputs(plan_report(["a"]))
    assert "best.safetensors are missing" in one.notes[0]
    report("a", "samples=0")
    assert json.loads((home / "reports" / "a" / "report.json").read_text())["tables"] == known != []


def test_the_winner_of_a_sweep_is_shown_with_all_trials(home):
    sweep = begin(home / "sweeps" / "mine")
    study = sweep.study()
    for number in range(2):
        trial = study.ask()
        trained(sweep.folder_of(TrialRun(trial.number, 0)).path)
        if number == 0:  # a trial that did not win has no test accuracy
            folder = sweep.folder_of(TrialRun(0, 0))
            lines = folder.journal.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["kind"] != "evaluation"]
            folder.journal.write_text("\n".join(kept) + "\n")
        study.finish(trial.number, [0.5])
    report("mine", "samples=0")
    page = (home / "reports" / "mine-0001" / "index.html").read_text()
    assert "All trials of the sweep mine" in page
    assert "Trial 1 won." in page
    assert "python -m raymi.tune" in page, "the command that made it"
    rates = [f"{trial.values['optim.lr']:.4g}" for trial in study]
    assert all(f"<td>{rate}</td>" in page for rate in rates)


def test_missing_images_are_reported_before_any_attack(home):
    folder = trained(home / "runs" / "a")
    trained(home / "runs" / "b")
    config = tiny_runs.tiny_config({"data.name": "npz", "data.root": "gone.npz"})
    folder.write_config(config)
    with pytest.raises(UserError, match="or set samples=0, for a report without attacks"):
        read_inputs(plan_report(["b", "a"]))
    report("a", "b", "samples=0")


def test_changed_test_images_give_a_note(home):
    folder = trained(home / "runs" / "a")
    folder.write_config(tiny_runs.tiny_config({"data.limit": 100}))
    (one,) = read_inputs(plan_report(["a"]))
    assert "the test images have changed since training" in one.notes[0]


def test_a_run_without_a_radius_is_not_attacked(home):
    folder = trained(home / "runs" / "a")
    config = folder.read_config()
    attack = config.attack.model_copy(update={"eps": 0.0})
    folder.write_config(config.model_copy(update={"attack": attack}))
    (one,) = read_inputs(plan_report(["a"]))
    assert one.notes == ("no attack, as its radius is 0",)
    report("a")
