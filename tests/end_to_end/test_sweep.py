"""Sweeps of real trials on Ray Tune, which end early, fail or are killed, and go on."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import raymi_command
from raymi_command import events, wait_for

from raymi.sweeps.sweep import Sweep

pytestmark = pytest.mark.slow

WORDS = (
    "space=smoke", "tune.trials=4", "data.limit=200", "data.image_size=8", "epochs=3",
    "attack.steps=2", "model.width=0.5",
)  # fmt: skip


def start(home: Path, *words: str) -> subprocess.Popen:
    return raymi_command.start(home, *words, module="raymi.tune")


def finish(process: subprocess.Popen, code: int = 0) -> str:
    out, err = process.communicate(timeout=raymi_command.TIMEOUT)
    assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
    return out


def epochs_of(sweep: Path) -> int:
    """Epochs that all trials have made by now."""
    return sum(len(events(trial, "epoch")) for trial in sweep.glob("trials/*"))


def test_a_sweep_that_is_stopped_and_killed_has_just_the_trials_that_were_asked_for(tmp_path):
    whole = finish(start(tmp_path, *WORDS, "name=whole", "tune.scheduler=none"))
    assert whole.count("finished after epoch 3") == 4
    assert "best: trial" in whole
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
    finish(start(tmp_path, "resume=cut"))
    one, other = (Sweep(tmp_path / "sweeps" / name) for name in ("whole", "cut"))
    trials = list(other.study())
    assert [trial.state for trial in trials] == ["finished"] * 4
    assert sorted(path.name for path in (other.path / "trials").iterdir()) == [
        f"{number:04d}" for number in range(4)
    ]
    first = next(iter(one.study()))
    assert trials[0].values == first.values
    assert trials[0].objectives == first.objectives, "to the last bit, from its checkpoints"


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
    assert "best: trial 0" in out
