"""Trials of a sweep without Ray: ordinary runs that never read the test set."""

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
from raymi.tuning.sweep_folder import Measurement, TrialRun, best_so_far, find_sweep


def test_a_trial_is_a_run_without_the_test_set(tmp_path):
    sweep = begin(tmp_path / "sweep")
    result, reported = trained(sweep)
    assert result.status == "finished"
    folder = sweep.folder_of(FIRST)
    assert not events(folder.path, "evaluation")
    assert folder.read_config().optim.lr == 0.05
    assert [one.epoch for one in reported] == [1, 2, 3]
    best = best_so_far(reported)
    assert sweep.measurements(FIRST) == best
    assert sweep.is_finished(FIRST)
    robust = [one.robust for one in best]
    assert robust == sorted(robust)
    best_weights, last_weights = (load_file(folder.weights(which)) for which in ("best", "last"))
    assert best_weights.keys() == last_weights.keys()
    val = [event["val"]["robust_acc"] for event in events(folder.path, "epoch")]
    assert best[-1].robust == max(val)


def test_a_paused_trial_continues_bit_for_bit(tmp_path):
    whole, cut = begin(tmp_path / "whole"), begin(tmp_path / "cut")
    _, expected = trained(whole)
    result, first = trained(cut, on_report=lambda metrics: cut.stop_file.touch())
    assert not cut.is_finished(FIRST)
    assert (result.status, first) == ("paused", [])
    assert [one.epoch for one in cut.measurements(FIRST)] == [1]
    cut.stop_file.unlink()
    result, rest = trained(cut)
    assert result.status == "finished"
    assert rest == expected[1:]
    assert cut.measurements(FIRST) == best_so_far(expected)
    for which in ("best", "last"):
        one, other = (load_file(sweep.folder_of(FIRST).weights(which)) for sweep in (whole, cut))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_failure_is_a_result_and_no_exception(tmp_path):
    sweep = begin(tmp_path / "sweep")
    result, _ = trained(sweep, values={"optim.lr": 1e30})
    assert result.status == "failed"
    assert "expected finite losses" in result.reason
    nowhere = begin(tmp_path / "nowhere", **{"data.name": "folder", "data.root": str(tmp_path)})
    result, _ = trained(nowhere)
    assert result.status == "failed"


def test_an_error_of_a_users_model_is_the_reason_of_the_failure(tmp_path, monkeypatch):
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
    result, _ = trained(sweep)
    assert result.status == "failed"
    assert "torch_is_grad_enabled" in result.reason


def test_a_run_locked_by_another_process_is_paused(tmp_path, monkeypatch):
    monkeypatch.setattr("raymi.tuning.run_trial.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("raymi.tuning.run_trial.WAIT_SECONDS", 0.1)
    sweep = begin(tmp_path / "sweep")
    folder = sweep.folder_of(FIRST)
    folder.path.mkdir(parents=True)
    with folder.lock():
        assert trained(sweep)[0].status == "paused"
    assert trained(sweep)[0].status == "finished"


def test_a_sweep_starts_in_an_empty_folder_only(tmp_path):
    (tmp_path / "mine").mkdir()
    assert begin(tmp_path / "mine").name == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match="has files and is no sweep: choose another name"):
        begin(tmp_path / "other")


def test_a_sweep_is_read_as_created(tmp_path):
    sweep = begin(tmp_path / "sweep", {"search": "grid", "trials": 2, "objective": "clean-robust"})
    again = find_sweep("sweep", tmp_path)
    assert again.definition == sweep.definition
    assert again.num_trials == 2
    assert begin(tmp_path / "all", {"search": "grid"}).num_trials == 3
    assert find_sweep(str(tmp_path / "all"), tmp_path / "elsewhere").name == "all"
    same = begin(tmp_path / "sweep", {"search": "grid", "trials": 2, "objective": "clean-robust"})
    assert same.definition == sweep.definition, "with its ID"
    with pytest.raises(UserError, match=r"other settings \(tune.trials, tune.search, tune.obj"):
        begin(tmp_path / "sweep")
    with pytest.raises(UserError, match=r"no sweep 'swep' in .*; sweeps: all, sweep"):
        find_sweep("swep", tmp_path)
    (tmp_path / "sweep" / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="is damaged, or of another version"):
        find_sweep("sweep", tmp_path)
    study = again.study()
    assert study.max_trials == 3
    with again.lock(), pytest.raises(UserError, match="is running in another process"):
        with again.lock():
            pass


def test_the_best_so_far_includes_earlier_epochs():
    first, second, third = (
        Measurement(1, 0.9, 0.5),
        Measurement(2, 0.8, 0.4),
        Measurement(3, 0.7, 0.6),
    )
    assert best_so_far([first, second, third]) == [first, Measurement(2, 0.9, 0.5), third]
    again = Measurement(2, 0.1, 0.7)
    assert best_so_far([first, second, again]) == [first, again], "a repeated epoch"


def test_trials_run_with_each_seed_and_are_compared_in_pairs(tmp_path):
    sweep = begin(tmp_path / "sweep", {"search": "grid"}, seeds=(3, 5), **{"optim.epochs": 1})
    study = sweep.study()
    for lr in (0.01, 0.1):
        number = study.ask().number
        for run in sweep.runs_of(number):
            assert sweep.config_of({"optim.lr": lr}, run).seed == run.seed
            assert trained(sweep, run, {"optim.lr": lr})[0].status == "finished"
        (row,) = trial_rows(sweep, [study[number]])
        robust = [sweep.measurements(run)[-1].robust for run in sweep.runs_of(number)]
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
    rows = trial_rows(sweep, study, [Finalist(other.number, TrialRun(other.number, 3), 0.1)])
    assert rows[0].number == other.number, "finalists precede the other trials"


def test_shared_stages_are_trained_once_and_a_waiting_trial_can_be_paused(tmp_path):
    staged = {"mi.schedule": "staged", "mi.pretrain_epochs": 1, "mi.estimator_epochs": 1}
    space = Space(name="mine", description="", parameters={"mi.balance": {"log": (0.1, 1.0)}})
    sweep = begin(tmp_path / "sweep", space=space, **staged, **{"optim.epochs": 1})
    phases = []

    def train_run(config, folder, until, until_epoch):
        phases.append(until)
        return in_this_process(CPU, sweep.stop_file)(config, folder, until, until_epoch)

    for number, balance in enumerate((0.1, 0.9)):
        result = run_trial(sweep, TrialRun(number, 0), {"mi.balance": balance}, train_run)
        assert result.status == "finished"
    assert phases == ["pretraining", "estimators", "classifier", "classifier"]
    (estimators,) = sweep.shared.glob("estimators-*")
    for number in (0, 1):
        config = sweep.folder_of(TrialRun(number, 0)).read_config()
        assert (config.mi.estimators, config.mi.pretrained) == (str(estimators), None)
    (estimators / "estimators.safetensors").unlink()
    with RunFolder(estimators).lock():
        sweep.stop_file.touch()
        assert run_trial(sweep, TrialRun(2, 0), {"mi.balance": 0.5}, train_run).status == "paused"
    assert len(phases) == 4
