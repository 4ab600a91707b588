"""Trials of a sweep without Ray: ordinary runs that never look at the test set."""

from __future__ import annotations

import pytest
import torch
from raymi_command import events
from safetensors.torch import load_file
from tiny_sweeps import CPU, FIRST, begin, trained

from raymi.errors import UserError
from raymi.runs.run_folder import RunFolder
from raymi.tuning.results_table import Finalist, trial_rows
from raymi.tuning.run_trial import in_this_process, run_trial
from raymi.tuning.space import Space
from raymi.tuning.sweep_folder import Measurement, TrialRun, find_sweep, reached


def test_a_trial_is_a_run_that_leaves_the_test_set_alone(tmp_path):
    sweep = begin(tmp_path / "sweep")
    ended, told = trained(sweep)
    assert ended.how == "finished"
    folder = sweep.folder_of(FIRST)
    assert not events(folder.path, "evaluation")
    assert folder.read_config().optim.lr == 0.05
    assert [one.epoch for one in told] == [1, 2, 3]
    best_so_far = reached(told)
    assert sweep.measured(FIRST) == best_so_far
    assert sweep.is_finished(FIRST)
    robust = [one.robust for one in best_so_far]
    assert robust == sorted(robust)
    best, last = (load_file(folder.weights(which)) for which in ("best", "last"))
    assert best.keys() == last.keys()
    val = [event["val"]["robust_acc"] for event in events(folder.path, "epoch")]
    assert best_so_far[-1].robust == max(val)


def test_a_trial_that_is_paused_goes_on_as_if_it_had_not_been(tmp_path):
    whole, cut = begin(tmp_path / "whole"), begin(tmp_path / "cut")
    _, expected = trained(whole)
    ended, first = trained(cut, tell=lambda metrics: cut.stop_file.touch())
    assert not cut.is_finished(FIRST)
    assert (ended.how, first) == ("paused", [])
    assert [one.epoch for one in cut.measured(FIRST)] == [1]
    cut.stop_file.unlink()
    ended, rest = trained(cut)
    assert ended.how == "finished"
    assert rest == expected[1:]
    assert cut.measured(FIRST) == reached(expected)
    for which in ("best", "last"):
        one, other = (load_file(sweep.folder_of(FIRST).weights(which)) for sweep in (whole, cut))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_fails_is_said_and_not_raised(tmp_path):
    sweep = begin(tmp_path / "sweep")
    ended, _ = trained(sweep, values={"optim.lr": 1e30})
    assert ended.how == "failed"
    assert "expected finite losses" in ended.reason
    nowhere = begin(tmp_path / "nowhere", **{"data.name": "folder", "data.root": str(tmp_path)})
    ended, _ = trained(nowhere)
    assert ended.how == "failed"


def test_an_error_of_a_user_s_model_is_told_and_kept_with_its_run(tmp_path, monkeypatch):
    (tmp_path / "broken_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, image_size):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3 * image_size**2, num_classes)\n"
        "    def forward(self, x):\n"
        "        if torch_is_grad_enabled():\n"
        "            return self.fc(x.flatten(1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"model.name": "broken_net:Net", "model.width": None, "model.depth": None}
    sweep = begin(tmp_path / "sweep", **own)
    ended, _ = trained(sweep)
    assert ended.how == "failed"
    assert "torch_is_grad_enabled" in ended.reason


def test_a_run_that_another_process_still_holds_is_not_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("raymi.tuning.run_trial.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("raymi.tuning.run_trial.WAIT_SECONDS", 0.1)
    sweep = begin(tmp_path / "sweep")
    folder = sweep.folder_of(FIRST)
    folder.path.mkdir(parents=True)
    with folder.lock():
        assert trained(sweep)[0].how == "paused"
    assert trained(sweep)[0].how == "finished"


def test_a_folder_of_something_else_becomes_no_sweep_and_an_empty_one_does(tmp_path):
    (tmp_path / "mine").mkdir()
    assert begin(tmp_path / "mine").name == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match="has files and is no sweep: choose another name"):
        begin(tmp_path / "other")


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
    with again.lock(), pytest.raises(UserError, match="is running in another process"):
        with again.lock():
            pass


def test_the_best_so_far_is_what_a_run_has_reached():
    first, second, third = (
        Measurement(1, 0.9, 0.5),
        Measurement(2, 0.8, 0.4),
        Measurement(3, 0.7, 0.6),
    )
    assert reached([first, second, third]) == [first, Measurement(2, 0.9, 0.5), third]
    again = Measurement(2, 0.1, 0.7)
    assert reached([first, second, again]) == [first, again], "an epoch that was repeated"


def test_trials_are_repeated_with_each_seed_and_compared_in_pairs(tmp_path):
    sweep = begin(tmp_path / "sweep", {"search": "grid"}, seeds=(3, 5), **{"optim.epochs": 1})
    study = sweep.study()
    for lr in (0.01, 0.1):
        number = study.ask().number
        for run in sweep.runs_of(number):
            assert sweep.config_of({"optim.lr": lr}, run).seed == run.seed
            assert trained(sweep, run, {"optim.lr": lr})[0].how == "finished"
        (row,) = trial_rows(sweep, [study[number]])
        robust = [sweep.measured(run)[-1].robust for run in sweep.runs_of(number)]
        assert row.robust == pytest.approx(sum(robust) / 2)
        study.finish(number, [row.robust])
    names = sorted(path.name for path in sweep.trials.iterdir())
    assert names == ["0000-seed3", "0000-seed5", "0001-seed3", "0001-seed5"]
    best, other = trial_rows(sweep, study)
    assert best.difference is None
    assert best.robust >= other.robust
    pairs = [other.by_seed[seed].robust - best.by_seed[seed].robust for seed in (3, 5)]
    assert other.difference.mean == pytest.approx(sum(pairs) / 2)
    assert other.difference.error == pytest.approx(abs(pairs[0] - pairs[1]) / 2)
    judged = trial_rows(sweep, study, [Finalist(other.number, TrialRun(other.number, 3), 0.1)])
    assert judged[0].number == other.number, "a finalist is ahead of what was not in the final"


def test_what_trials_share_is_trained_once_and_a_waiting_one_can_be_paused(tmp_path):
    staged = {"mi.schedule": "staged", "mi.pretrain_epochs": 1, "mi.estimator_epochs": 1}
    space = Space(name="mine", description="", parameters={"mi.balance": {"log": (0.1, 1.0)}})
    sweep = begin(tmp_path / "sweep", space=space, **staged, **{"optim.epochs": 1})
    phases = []

    def train_run(config, folder, until, until_epoch):
        phases.append(until)
        return in_this_process(CPU, sweep.stop_file)(config, folder, until, until_epoch)

    for number, balance in enumerate((0.1, 0.9)):
        ended = run_trial(sweep, TrialRun(number, 0), {"mi.balance": balance}, train_run)
        assert ended.how == "finished"
    assert phases == ["pretraining", "estimators", "classifier", "classifier"]
    (estimators,) = sweep.shared.glob("estimators-*")
    for number in (0, 1):
        config = sweep.folder_of(TrialRun(number, 0)).read_config()
        assert (config.mi.estimators, config.mi.pretrained) == (str(estimators), None)
    (estimators / "estimators.safetensors").unlink()
    with RunFolder(estimators).lock():
        sweep.stop_file.touch()
        assert run_trial(sweep, TrialRun(2, 0), {"mi.balance": 0.5}, train_run).how == "paused"
    assert len(phases) == 4
