"""A report from its request to its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_runs
from tiny_sweeps import begin

from raymi.commands.report.options import requested
from raymi.commands.report.run import MULTIPLES, make_report, planned, track
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
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    return tmp_path


def report(*words: str) -> tuple[list[str], list[tuple[str, int, int]]]:
    """Makes a report; lines and progress."""
    lines: list[str] = []
    beats: list[tuple[str, int, int]] = []
    request = requested(words)
    plans = planned(request)
    files = make_report(request, plans, lines.append, lambda *beat: beats.append(beat))
    assert files[-1].is_file()
    assert list(track(request, plans, files)) == [], "these runs are in no store"
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


def test_radii_that_leave_the_space_of_images_are_left_out(home):
    trained(home / "runs" / "a", **{"attack.eps": 0.6})
    report("a", "samples=10", "steps=1")
    kept = list((home / "runs" / "a" / "report").glob("*.safetensors"))
    assert len(kept) == sum(0.6 * multiple <= 1 for multiple in MULTIPLES) == 5


def test_without_samples_or_weights_nothing_is_attacked_and_the_numbers_of_training_stay(home):
    folder = trained(home / "runs" / "a")
    _, beats = report("a", "samples=0")
    assert beats == []
    assert not (folder.path / "report").exists()

    known = json.loads((home / "reports" / "a" / "report.json").read_text())["tables"]
    folder.weights("best").unlink()
    (plan,) = planned(requested(["a"]))
    assert "best.safetensors are gone" in plan.notes[0]
    report("a", "samples=0")
    assert json.loads((home / "reports" / "a" / "report.json").read_text())["tables"] == known != []


def test_the_winner_of_a_sweep_is_shown_with_all_trials(home):
    sweep = begin(home / "sweeps" / "mine")
    study = sweep.study()
    for number in range(2):
        trial = study.ask()
        trained(sweep.folder_of(TrialRun(trial.number, 0)).path)
        if number == 0:  # the other one was not measured on the test set
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


def test_images_that_are_not_there_are_missed_before_anything_else(home):
    folder = trained(home / "runs" / "a")
    trained(home / "runs" / "b")
    config = tiny_runs.tiny_config({"data.name": "npz", "data.root": "gone.npz"})
    folder.write_config(config)
    with pytest.raises(UserError, match="or give samples=0, for a report without attacks"):
        planned(requested(["b", "a"]))
    report("a", "b", "samples=0")


def test_other_images_than_those_of_the_training_are_told(home):
    folder = trained(home / "runs" / "a")
    folder.write_config(tiny_runs.tiny_config({"data.limit": 100}))
    (plan,) = planned(requested(["a"]))
    assert "the test images are other ones now" in plan.notes[0]


def test_a_run_without_a_radius_is_not_attacked(home):
    folder = trained(home / "runs" / "a")
    config = folder.read_config()
    attack = config.attack.model_copy(update={"eps": 0.0})
    folder.write_config(config.model_copy(update={"attack": attack}))
    (plan,) = planned(requested(["a"]))
    assert plan.notes == ("its radius is 0: nothing is attacked",)
    report("a")
