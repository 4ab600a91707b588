"""Sweeps of real trials on Ray Tune, which end early, fail or are killed, and go on."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import raymi_command
from mlflow_store import client, in_folder, runs
from raymi_command import UNHURRIED, events, unhurried_model, wait_for
from tiny_sweeps import trained

from raymi.sweeps.sweep import Run, Sweep, reached

pytestmark = pytest.mark.slow

SMALL = ("data.limit=200", "data.image_size=8", "attack.steps=2", "model.width=0.5")
TRAINED_ONLY = ("tune.finalists=0", "tune.test_suite=none", "tracking.enabled=false")
WORDS = ("space=smoke", "tune.trials=4", "epochs=3", *SMALL, *TRAINED_ONLY)
RATES = (
    'description = "rates, of which one learns nothing"\n'
    '[parameters."optim.lr"]\nchoice = [0.1, 1e-12, 0.05]\n'
)


def start(home: Path, *words: str, **env: str) -> subprocess.Popen:
    return raymi_command.start(home, *words, module="raymi.tune", **env)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    out, err = process.communicate(timeout=raymi_command.TIMEOUT)
    assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
    return out


def epochs_of(sweep: Path) -> int:
    """Epochs that all trials have made by now."""
    return sum(len(events(trial, "epoch")) for trial in sweep.glob("trials/*"))


def test_a_sweep_that_is_stopped_and_killed_has_just_the_trials_that_were_asked_for(tmp_path):
    path = tmp_path / "sweeps" / "cut"
    process = start(tmp_path, *WORDS, "name=cut", "tune.scheduler=none")
    wait_for(lambda: epochs_of(path) >= 2, process)
    process.send_signal(signal.SIGINT)
    out = finish(process, 130)
    assert "stopped by SIGINT; to continue: python -m raymi.tune resume=cut" in out
    process = start(tmp_path, "resume=cut")
    wait_for(lambda: epochs_of(path) >= 5, process)
    process.kill()
    process.communicate()
    out = finish(start(tmp_path, "resume=cut"))
    assert "winner: trial" in out
    sweep = Sweep(path)
    trials = list(sweep.study())
    assert [trial.state for trial in trials] == ["finished"] * 4
    assert sorted(path.name for path in sweep.trials.iterdir()) == [
        f"{number:04d}" for number in range(4)
    ]
    cut = [one for one in trials if len(events(sweep.trials / f"{one.number:04d}", "start")) > 1]
    assert cut, "some went on from their checkpoints"
    alone = Sweep.begin(tmp_path / "alone", sweep.definition)
    for trial in cut:
        ended, told = trained(alone, Run(trial.number, 0), trial.values)
        assert ended.how == "finished"
        assert trial.objectives == (reached(told)[-1].robust,), "to the last bit"


def test_a_population_that_is_killed_goes_on(tmp_path):
    words = ("space=mi_rates", "tune.search=pbt", "tune.trials=3", "epochs=3", *WORDS[3:], "name=p")
    path = tmp_path / "sweeps" / "p"
    process = start(tmp_path, *words)
    wait_for(lambda: epochs_of(path) >= 4, process)
    process.kill()
    process.communicate()
    out = finish(start(tmp_path, "resume=p"))
    assert "waits for its population after epoch 2" in out
    sweep = Sweep(path)
    assert [trial.state for trial in sweep.study()] == ["finished"] * 3
    taken = [event for trial in path.glob("trials/*") for event in events(trial, "exploited")]
    assert [event["epoch"] for event in sorted(taken, key=lambda event: event["epoch"])] == [1, 2]
    for trial in sweep.study():
        config = sweep.folder_of(Run(trial.number, 0)).read_config()
        assert config.mi.balance == trial.values["mi.balance"]


def test_trials_of_several_workers_give_their_places_back_when_they_are_stopped(tmp_path):
    (tmp_path / "rates.toml").write_text(RATES)
    words = (
        "space=rates.toml", "recipe=quickstart-at", "tune.search=grid", "tune.trials=3",
        "tune.factor=2", "tune.first_epochs=2", "scaling.workers=2", "epochs=4", "eps=0.001",
        *SMALL, *TRAINED_ONLY, "name=w",
    )  # fmt: skip
    out = finish(start(tmp_path, *words))
    sweep = Sweep(tmp_path / "sweeps" / "w")
    first, second, third = sweep.study()
    assert (first.state, second.state) == ("finished", "stopped")
    assert third.state in ("finished", "stopped"), "it found a place"
    assert "trial 1: stopped, as others are ahead after epoch 2" in out
    for number in range(3):
        folder = sweep.folder_of(Run(number, 0)).path
        assert [event["workers"] for event in events(folder, "start")] == [2]
        least = 2 if sweep.study()[number].state == "stopped" else 4
        assert least <= len(events(folder, "epoch")) <= 4, "it ends soon after it is asked to"


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'description = "one learning rate that cannot work"\n'
        '[parameters."optim.lr"]\nchoice = [0.05, 1e30]\n'
    )
    words = ("space=mine.toml", "recipe=quickstart-at", "tune.search=grid", *WORDS[1:], "name=g")
    out = finish(start(tmp_path, *words))
    first, second = Sweep(tmp_path / "sweeps" / "g").study()
    assert (first.state, second.state) == ("finished", "failed")
    assert "expected finite losses" in second.reason
    assert "trial 1: failed" in out
    assert "winner: trial 0" in out


def test_the_loss_of_a_node_costs_no_trial(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        hurry = unhurried_model(tmp_path)
        words = [word for word in WORDS if not word.startswith("model.width")]
        process = start(
            tmp_path, *words, UNHURRIED, "tune.scheduler=none", f"out={tmp_path / 'sweeps'}",
            "name=n", RAY_ADDRESS=cluster.address,
        )  # fmt: skip
        first_two = [tmp_path / "sweeps" / "n" / "trials" / number for number in ("0000", "0001")]

        def number_of(kind: str) -> list[int]:
            return sorted(len(events(trial, kind)) for trial in first_two)

        wait_for(lambda: all(number_of("epoch")), process)
        cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: number_of("start") == [1, 2], process)
        hurry.touch()
        finish(process)
    finally:
        cluster.shutdown()
    sweep = Sweep(tmp_path / "sweeps" / "n")
    assert [trial.state for trial in sweep.study()] == ["finished"] * 4
    assert number_of("start") == [1, 2], "one of them went on from its checkpoint"


def test_the_winner_of_a_final_is_measured_on_the_test_set_and_registered(tmp_path, monkeypatch):
    words = (
        "space=smoke", "tune.trials=2", "seeds=0..1", "epochs=2", "tune.search=random",
        "tune.samples=12", "tune.test_suite=quick", *SMALL, "evaluation.steps=2", "name=f",
    )  # fmt: skip
    secret = "s3cr3t-of-a-user"
    names = ("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")
    out = finish(start(tmp_path, *words, **dict.fromkeys(names, secret)))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert secret not in out
    sweep = Sweep(tmp_path / "sweeps" / "f")
    trials = sorted(path.name for path in sweep.trials.iterdir())
    assert trials == ["0000-seed0", "0000-seed1", "0001-seed0", "0001-seed1"]
    assert "differences of robust accuracy to the first one, seed by seed" in out
    evaluated = [name for name in trials if events(sweep.trials / name, "evaluation")]
    assert len(evaluated) == 1, "the winner alone"
    (winner,) = evaluated
    assert f"winner: trial {int(winner[:4])}" in out
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
    again = finish(start(tmp_path, "resume=f"))
    assert f"winner: trial {int(winner[:4])}" in again
    assert len(runs()) == 5, "nothing is told twice"
