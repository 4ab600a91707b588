"""Trials of a sweep without Ray: ordinary runs that never look at the test set."""

from __future__ import annotations

import pytest
import torch
from raymi_command import events
from safetensors.torch import load_file
from tiny_runs import TINY

from raymi.errors import UserError
from raymi.sweeps.settings import TuneConfig
from raymi.sweeps.space import Space
from raymi.sweeps.sweep import Definition, Sweep, find_sweep
from raymi.sweeps.trial import run_trial

SPACE = Space(name="lr", description="", parameters={"optim.lr": {"log": (0.01, 0.1)}})
SETTINGS = {k: v for k, v in TINY.items() if k != "optim.lr"} | {"optim.epochs": 3}
CPU = torch.device("cpu")


def begin(path, tune=None, **settings):
    definition = Definition(
        id="0",
        command="python -m raymi.tune",
        space=SPACE,
        recipe="quickstart",
        settings=SETTINGS | settings,
        tune=TuneConfig(**(tune or {})),
    )
    return Sweep.begin(path, definition)


def trained(sweep, number=0, values=None, tell=None):
    told = []
    ended = run_trial(sweep, number, values or {"optim.lr": 0.05}, CPU, tell or told.append)
    return ended, told


def test_a_trial_is_a_run_that_leaves_the_test_set_alone(tmp_path):
    sweep = begin(tmp_path / "sweep")
    ended, told = trained(sweep)
    assert ended.how == "finished"
    folder = sweep.folder_of(0)
    assert not events(folder.path, "evaluation")
    assert folder.read_config().optim.lr == 0.05
    assert [one.epoch for one in told] == [1, 2, 3]
    assert [one.robust for one in told] == sorted(one.robust for one in told), "the best so far"
    assert sweep.measured(0) == told
    best, last = (load_file(folder.weights(which)) for which in ("best", "last"))
    assert best.keys() == last.keys()
    val = [event["val"]["robust_acc"] for event in events(folder.path, "epoch")]
    assert told[-1].robust == max(val)


def test_a_trial_that_is_paused_goes_on_as_if_it_had_not_been(tmp_path):
    whole, cut = begin(tmp_path / "whole"), begin(tmp_path / "cut")
    _, expected = trained(whole)
    ended, first = trained(cut, tell=lambda measured: cut.stop_file.touch())
    assert (ended.how, first) == ("paused", [])
    assert [one.epoch for one in cut.measured(0)] == [1]
    cut.stop_file.unlink()
    ended, rest = trained(cut)
    assert ended.how == "finished"
    assert rest == expected[1:]
    assert cut.measured(0) == expected
    for which in ("best", "last"):
        one, other = (load_file(sweep.folder_of(0).weights(which)) for sweep in (whole, cut))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_fails_is_said_and_not_raised(tmp_path):
    sweep = begin(tmp_path / "sweep")
    ended, _ = trained(sweep, values={"optim.lr": 1e30})
    assert ended.how == "failed"
    assert "expected finite losses" in ended.reason
    nowhere = begin(tmp_path / "nowhere", **{"data.name": "folder", "data.root": str(tmp_path)})
    ended, _ = trained(nowhere)
    assert ended.how == "failed"


def test_a_sweep_is_read_as_it_was_begun(tmp_path):
    sweep = begin(tmp_path / "sweep", {"search": "grid", "trials": 2, "objective": "clean-robust"})
    again = find_sweep("sweep", tmp_path)
    assert again.definition == sweep.definition
    assert again.num_trials == 2
    assert begin(tmp_path / "all", {"search": "grid"}).num_trials == 3
    assert find_sweep(str(tmp_path / "all"), tmp_path / "elsewhere").name == "all"
    with pytest.raises(UserError, match="is there already: continue it with resume=sweep"):
        begin(tmp_path / "sweep")
    with pytest.raises(UserError, match=r"no sweep 'swep' in .*; there: all, sweep"):
        find_sweep("swep", tmp_path)
    (tmp_path / "sweep" / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="is damaged, or of another version"):
        find_sweep("sweep", tmp_path)
    study = again.study()
    assert study.most == 3
    with again.alone(), pytest.raises(UserError, match="is going on in another process"):
        with again.alone():
            pass
