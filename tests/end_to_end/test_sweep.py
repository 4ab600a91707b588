"""Sweeps of real trials on Ray Tune: interrupted, killed, stopped early, failing."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import raymi_command
from mlflow_store import client, in_folder, runs
from ray_head import Head
from raymi_command import SLOW_MODEL, events, finish, wait_for, write_slow_model
from tiny_sweeps import trained

from raymi import tune
from raymi.tuning.sweep_folder import Sweep, TrialRun, best_so_far

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SMALL = ("data.limit=200", "data.image_size=8", "attack.steps=2", "validation.steps=2")
THIN = ("model.width=0.5",)
TRAINED_ONLY = ("tune.finalists=0", "tune.test_suite=none", "tracking.enabled=false")
RATES = (
    'description = "rates, of which one learns nothing"\n'
    '[parameters."optim.lr"]\nchoice = [0.1, 1e-12, 0.05]\n'
)
SECRET = "s3cr3t-of-a-user"
PLANTED = dict.fromkeys(("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"), SECRET)


def start(home: Path, *words: str, **env: str) -> subprocess.Popen:
    return raymi_command.start(home, *words, module="raymi.tune", **env)


def epochs_of(sweep: Path) -> int:
    """Returns the number of epochs that all trials have made."""
    return sum(len(events(trial, "epoch")) for trial in sweep.glob("trials/*"))


def assert_equal_to_undisturbed(sweep: Sweep, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asserts that runs which were continued have the results of undisturbed ones, bit for bit."""
    monkeypatch.syspath_prepend(home)  # the user's own model
    alone = Sweep.begin(home / "alone", sweep.definition)
    continued = []
    for trial in sweep.study():
        for seed in sweep.seeds:
            run = TrialRun(trial.number, seed)
            folder = sweep.folder_of(run)
            if len(events(folder.path, "start")) < 2:
                continue
            continued.append(run)
            ended, measured = trained(alone, run, trial.values)
            assert ended.status == "finished"
            assert (
                best_so_far(sweep.measurements(run))[-1].robust == best_so_far(measured)[-1].robust
            )
    assert continued, "some continued from their checkpoints"


def test_an_interrupted_sweep_continues_to_a_winner_that_is_measured_and_registered(
    joined_ray: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, path = write_slow_model(tmp_path), tmp_path / "sweeps" / "f"
    words = (
        "space=smoke", "tune.trials=2", "epochs=3", "tune.search=random", "tune.scheduler=none",
        "tune.samples=12", "tune.test_suite=quick", *SMALL, SLOW_MODEL, "evaluation.steps=2",
    )  # fmt: skip
    process = start(tmp_path, *words, "name=f", **joined_ray.env, **PLANTED)
    wait_for(lambda: epochs_of(path) >= 2, process)
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    assert "stopped by SIGINT; to continue: python -m raymi.tune resume=f" in output
    release.touch()
    output += finish(start(tmp_path, "resume=f", **joined_ray.env, **PLANTED))
    assert SECRET not in output
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []

    sweep = Sweep(path)
    assert [trial.state for trial in sweep.study()] == ["finished"] * 2
    trials = sorted(folder.name for folder in sweep.trials.iterdir())
    assert trials == ["0000", "0001"]
    assert_equal_to_undisturbed(sweep, tmp_path, monkeypatch)
    (winner,) = (name for name in trials if events(sweep.trials / name, "evaluation"))
    assert f"winner: trial {int(winner[:4])}" in output
    in_folder(tmp_path, monkeypatch)
    by_name = {run.info.run_name: run for run in runs()}
    parent = by_name["f"]
    assert set(by_name) == {"f", *(f"f/{name}" for name in trials)}
    assert parent.data.tags["raymi.winner"] == str(int(winner[:4]))
    assert {"final/val_autoattack_acc", "final/test_pgd20_acc"} <= set(parent.data.metrics)
    assert parent.data.metrics["final/test_num"] == 12
    (version,) = client().search_model_versions("name = 'raymi-digits'")
    child = by_name[f"f/{winner}"]
    assert version.run_id == child.info.run_id
    assert any(key.startswith("eval/digits-test-12/") for key in child.data.metrics)


def test_a_failed_trial_is_recorded_and_the_others_finish(
    joined_ray: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(
        'description = "one learning rate that cannot work"\n'
        '[parameters."optim.lr"]\nchoice = [0.05, 1e30]\n'
    )
    words = ("space=mine.toml", "recipe=quickstart-at", "tune.search=grid", "epochs=3", "name=g")
    assert tune.main([*words, *SMALL, *THIN, *TRAINED_ONLY]) == 0
    first, second = Sweep(tmp_path / "sweeps" / "g").study()
    assert (first.state, second.state) == ("finished", "failed")
    assert "expected finite losses" in second.reason
    output = capsys.readouterr().out
    assert "trial 1: failed" in output
    assert "winner: trial 0" in output


@pytest.mark.exhaustive
def test_a_killed_sweep_has_exactly_the_trials_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, path = write_slow_model(tmp_path), tmp_path / "sweeps" / "cut"
    words = ("space=smoke", "tune.trials=2", "seeds=0..1", "epochs=3", "name=cut")
    process = start(tmp_path, *words, *SMALL, SLOW_MODEL, *TRAINED_ONLY)
    wait_for(lambda: epochs_of(path) >= 2, process)
    process.kill()
    process.communicate()
    release.touch()
    output = finish(start(tmp_path, "resume=cut"))
    assert "winner: trial" in output
    assert "paired differences of robust accuracy to the first trial" in output
    sweep = Sweep(path)
    assert [trial.state for trial in sweep.study()] == ["finished"] * 2
    assert sorted(folder.name for folder in sweep.trials.iterdir()) == [
        "0000-seed0", "0000-seed1", "0001-seed0", "0001-seed1",
    ]  # fmt: skip
    assert_equal_to_undisturbed(sweep, tmp_path, monkeypatch)


@pytest.mark.exhaustive
def test_a_killed_population_continues(tmp_path: Path) -> None:
    release, path = write_slow_model(tmp_path), tmp_path / "sweeps" / "p"
    words = ("space=mi_rates", "tune.search=pbt", "tune.trials=3", "epochs=3", "name=p")
    process = start(tmp_path, *words, *SMALL, SLOW_MODEL, *TRAINED_ONLY)
    wait_for(lambda: epochs_of(path) >= 4, process)
    process.kill()
    process.communicate()
    release.touch()
    output = finish(start(tmp_path, "resume=p"))
    assert "completed its generation after epoch 2" in output
    sweep = Sweep(path)
    assert [trial.state for trial in sweep.study()] == ["finished"] * 3
    taken = [event for trial in path.glob("trials/*") for event in events(trial, "exploited")]
    assert [event["epoch"] for event in sorted(taken, key=lambda event: event["epoch"])] == [1, 2]
    for trial in sweep.study():
        config = sweep.folder_of(TrialRun(trial.number, 0)).read_config()
        assert config.mi.balance == trial.values["mi.balance"]


@pytest.mark.exhaustive
def test_stopped_trials_of_several_workers_free_their_places(tmp_path: Path) -> None:
    (tmp_path / "rates.toml").write_text(RATES)
    words = (
        "space=rates.toml", "recipe=quickstart-at", "tune.search=grid", "tune.trials=3",
        "tune.factor=2", "tune.first_epochs=2", "scaling.workers=2", "epochs=4", "eps=0.001",
        *SMALL, *THIN, *TRAINED_ONLY, "name=w",
    )  # fmt: skip
    output = finish(start(tmp_path, *words))
    sweep = Sweep(tmp_path / "sweeps" / "w")
    first, second, third = sweep.study()
    assert (first.state, second.state) == ("finished", "stopped")
    assert third.state in ("finished", "stopped"), "it found a place"
    assert "trial 1: stopped, as others are ahead after epoch 2" in output
    for number in range(3):
        folder = sweep.folder_of(TrialRun(number, 0)).path
        assert [event["workers"] for event in events(folder, "start")] == [2]
        least = 2 if sweep.study()[number].state == "stopped" else 4
        assert least <= len(events(folder, "epoch")) <= 4, "it ends soon after the request"
