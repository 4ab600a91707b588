"""The moving average of weights: its formula, its checkpoint, and its place in a run."""

from __future__ import annotations

import pytest
import torch
from gloo import run_ranks
from safetensors.torch import load_file
from test_loop import events, expect_equal_runs
from tiny_runs import same, tiny_config, tiny_run, tiny_state

from raymi.models.ema import WeightEMA
from raymi.runs.run_folder import RunFolder

AVERAGED = {"optim.ema": 0.9}


def test_the_average_is_the_warmed_up_exponential_one():
    model = torch.nn.BatchNorm1d(3).double()
    average, expected = WeightEMA(model, 0.5), None
    for step in range(12):
        with torch.no_grad():
            for value in (model.weight, model.running_var):
                value.uniform_()
            model.num_batches_tracked += 1
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        now = torch.stack([model.weight.detach(), model.running_var])
        expected = now if expected is None else decay * expected + (1 - decay) * now
        averaged = torch.stack([average.model.weight.detach(), average.model.running_var])
        torch.testing.assert_close(averaged, expected, rtol=1e-12, atol=0)


def test_averaging_does_not_change_the_classifier():
    histories = []
    for settings in ({}, AVERAGED):
        state, loader = tiny_state(tiny_config(settings))
        for batch in loader.epoch(0):
            state.step(batch)
        histories.append(dict(state.model.state_dict()))
    assert same(*histories)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    tiny_run(0, 1, folder, AVERAGED, [])
    return RunFolder(folder)


def test_both_are_validated_saved_and_evaluated_and_one_is_chosen_on_validation(finished):
    names = [e["which"] for e in events(finished.path, "evaluation")]
    assert names == ["last", "best", "last-averaged", "best-averaged"]
    for which in names:
        assert finished.weights(which).is_file()
    assert not same(
        load_file(finished.weights("last")), load_file(finished.weights("last-averaged"))
    )
    scores = {
        "best": max((e["val"]["robust_acc"], e["val"]["clean_acc"]) for e in _epochs(finished)),
        "best-averaged": max(
            (e["val"]["averaged/robust_acc"], e["val"]["averaged/clean_acc"])
            for e in _epochs(finished)
        ),
    }
    (chosen,) = [e["which"] for e in events(finished.path, "evaluation") if e["chosen"]]
    assert scores[chosen] == max(scores.values())


def _epochs(folder):
    return events(folder.path, "epoch")


def test_a_stopped_run_continues_its_average(finished, tmp_path):
    tiny_run(0, 1, tmp_path, AVERAGED, [3, 4])
    expect_equal_runs(finished.path, tmp_path)
    for which in ("last-averaged", "best-averaged"):
        one, other = (load_file(f.weights(which)) for f in (finished, RunFolder(tmp_path)))
        assert same(one, other), which


def test_workers_agree_on_the_average(tmp_path):
    run_ranks(tiny_run, 2, tmp_path / "run", AVERAGED, [], tmp_path=tmp_path)
    assert len(events(tmp_path / "run", "evaluation")) == 4
