"""The staged schedule: AT, then the estimators on it, then the classifier from scratch."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from gloo import run_ranks
from safetensors.torch import load_file
from test_loop import DROPOUT, events, expect_equal_runs
from tiny_runs import StoppingContext, same, steps_in_float64, tiny_config, tiny_run, tiny_state

from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.engine.phases import phases_of
from raymi.errors import UserError
from raymi.runs.checkpoint import load_checkpoint
from raymi.runs.pretrained import pretrained_problems
from raymi.runs.run_folder import RunFolder

STAGED = {"mi.schedule": "staged", "optim.epochs": 2, "mi.estimator_epochs": 2}


def phases(**settings):
    config = tiny_config({f"mi.{k}": v for k, v in settings.items()})
    return [(phase.name, phase.config.optim.epochs) for phase in phases_of(config)]


def test_the_phases_of_each_schedule():
    assert phases() == [("classifier", 2)]
    assert phases(schedule="staged") == [("pretraining", 2), ("estimators", 1), ("classifier", 2)]
    lengths = {"pretrain_epochs": 5, "estimator_epochs": 3}
    assert phases(schedule="staged", **lengths)[:2] == [("pretraining", 5), ("estimators", 3)]
    assert phases(pretrained="a") == [("estimators", 1), ("classifier", 2)]
    assert phases(estimators="a") == [("classifier", 2)]
    assert phases(schedule="staged", weight=0) == [("classifier", 2)]
    assert phases(schedule="staged", form="random") == [("classifier", 2)]


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged")
    assert tiny_run(0, 1, folder, STAGED, []).finished
    return RunFolder(folder)


def test_each_phase_is_recorded_with_its_epochs(staged):
    recorded = [(e["phase"], e["epoch"], e["global_step"]) for e in events(staged.path, "epoch")]
    assert recorded == [
        ("pretraining", 1, 5), ("pretraining", 2, 10), ("estimators", 1, 15), ("estimators", 2, 20),
        ("classifier", 1, 25), ("classifier", 2, 30),
    ]  # fmt: skip
    (start,) = events(staged.path, "start")
    assert start["phases"] == {"pretraining": 2, "estimators": 2, "classifier": 2}
    assert "loss_estimators" in events(staged.path, "epoch")[2]["train"]
    assert "loss_mi" in events(staged.path, "epoch")[4]["train"]


def test_pretraining_is_plain_adversarial_training_bit_for_bit(staged, tmp_path):
    tiny_run(0, 1, tmp_path, {"mi.weight": 0}, [])
    assert same(load_file(staged.pretrained), load_file(RunFolder(tmp_path).weights("best")))


def test_the_estimators_learn_on_a_frozen_classifier_and_are_frozen_afterwards():
    for phase, learns in (("estimators", "estimators"), ("classifier", "model")):
        state, loader = tiny_state(tiny_config(STAGED), phase=phase)
        modules = {"model": state.model, "estimators": state.estimators}
        before = {k: {n: v.clone() for n, v in m.state_dict().items()} for k, m in modules.items()}
        for batch in loader.epoch(0):
            metrics = state.step(batch)
        changed = {k for k, m in modules.items() if not same(before[k], dict(m.state_dict()))}
        assert changed == {learns}
        assert all(torch.isfinite(value) for value in metrics.values())


def test_the_classifier_starts_from_its_own_initial_weights(staged):
    """Paired with AT of the same seed: not from the pretrained ones."""
    fresh, _ = tiny_state(tiny_config(STAGED))
    other, _ = tiny_state(tiny_config({"mi.weight": 0}))
    assert same(dict(fresh.model.state_dict()), dict(other.model.state_dict()))
    assert not same(load_file(staged.weights("last")), load_file(staged.pretrained))


@pytest.mark.parametrize("stops", [[3, 4, 6, 4, 6], [5, 5, 5]], ids=str)
def test_a_run_that_is_stopped_in_every_phase_is_the_uninterrupted_one(staged, stops, tmp_path):
    assert tiny_run(0, 1, tmp_path, STAGED, stops).finished
    expect_equal_runs(staged.path, tmp_path)
    assert same(load_file(staged.pretrained), load_file(RunFolder(tmp_path).pretrained))
    assert same(load_file(staged.estimators), load_file(RunFolder(tmp_path).estimators))


@pytest.mark.parametrize("until", ["pretraining", "estimators"])
def test_a_run_may_end_after_a_phase_and_continue(staged, until, tmp_path):
    run, config = RunFolder(tmp_path), tiny_config(STAGED)
    for stop_at in (3, 4, None):
        run.stop_file.unlink(missing_ok=True)
        context = StoppingContext(run.stop_file, stop_at)
        assert train(config, context, run, until=until).finished == (stop_at is None)
    assert same(load_file(staged.pretrained), load_file(run.pretrained))
    assert run.estimators.is_file() == (until == "estimators")
    assert not run.weights("best").exists()
    assert not events(run.path, "evaluation")
    kept = run.pretrained if until == "pretraining" else run.estimators
    kept.unlink()  # as if it had been killed before it could write
    assert train(config, LocalContext("cpu"), run, until=until).finished
    assert kept.is_file()
    assert train(config, LocalContext("cpu"), run).finished
    expect_equal_runs(staged.path, run.path)
    assert same(load_file(staged.estimators), load_file(run.estimators))


@pytest.mark.exhaustive
def test_several_workers_that_are_stopped_in_every_phase_end_with_the_same_bits(tmp_path):
    for name, stops in (("whole", []), ("stopped", [3, 6, 6, 7])):
        run_ranks(tiny_run, 2, tmp_path / name, STAGED, stops, tmp_path=tmp_path)
    expect_equal_runs(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", ["pretraining", "estimators", "classifier"])
def test_each_phase_is_the_same_on_any_number_of_workers(phase, tmp_path):
    alone = steps_in_float64(0, 1, STAGED, 6, phase)
    for history, weights in run_ranks(steps_in_float64, 3, STAGED, 6, phase, tmp_path=tmp_path):
        for mine, theirs in zip(history, alone[0], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)
        for name, value in weights.items():
            torch.testing.assert_close(value, alone[1][name], rtol=1e-9, atol=1e-9, msg=name)


def test_reusing_a_run_gives_what_training_everything_gives(staged, tmp_path):
    tiny_run(0, 1, tmp_path / "estimators", {"mi.estimators": str(staged.path)}, [])
    tiny_run(
        0, 1, tmp_path / "pretrained",
        {"mi.pretrained": str(staged.path), "mi.estimator_epochs": 2}, [],
    )  # fmt: skip
    last = load_file(staged.weights("last"))
    for name in ("estimators", "pretrained"):
        assert same(last, load_file(RunFolder(tmp_path / name).weights("last"))), name


def test_pretraining_and_reuse_work_for_a_network_with_dropout(tmp_path):
    settings = {**DROPOUT, "optim.epochs": 1, "mi.schedule": "staged"}
    runs = {name: RunFolder(tmp_path / name) for name in ("whole", "pretrained", "estimators")}
    for name, run in runs.items():
        lent = {} if name == "whole" else {f"mi.{name}": str(runs["whole"].path)}
        assert tiny_run(0, 1, run.path, settings | lent, []).finished
    last = [load_file(run.weights("last")) for run in runs.values()]
    assert same(last[0], last[1])
    assert same(last[0], last[2])


def test_a_continued_run_needs_the_reused_one_no_longer(staged, tmp_path):
    shutil.copytree(staged.path, tmp_path / "lent")
    settings = {"mi.estimators": str(tmp_path / "lent")}
    run, config = RunFolder(tmp_path / "run"), tiny_config(settings)
    assert not train(config, StoppingContext(run.stop_file, 3), run).finished
    shutil.rmtree(tmp_path / "lent")
    run.stop_file.unlink()
    assert train(config, LocalContext("cpu"), run).finished
    assert same(load_file(staged.weights("last")), load_file(run.weights("last")))


def test_a_plain_run_offers_its_best_classifier_and_a_joint_one_its_estimators(tmp_path):
    tiny_run(0, 1, tmp_path / "joint", {"optim.epochs": 1}, [])
    lent = {"mi.pretrained": str(tmp_path / "joint"), "optim.epochs": 1}
    assert tiny_run(0, 1, tmp_path / "one", lent, []).finished
    lent = {"mi.estimators": str(tmp_path / "joint"), "optim.epochs": 1}
    assert tiny_run(0, 1, tmp_path / "two", lent, []).finished
    checkpoint = load_checkpoint(RunFolder(tmp_path / "two").checkpoints)
    kept = load_file(RunFolder(tmp_path / "joint").estimators)
    assert same(dict(checkpoint["estimators"]), kept)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"mi.hidden": 8}, r"mi\.estimators: expected mi\.hidden=16 .*, got 8: set mi\.hidden=16"),
        ({"data.split_seed": 1}, r"mi\.estimators: expected data\.split_seed=0 as in"),
        ({"attack.eps": 0.1}, r"mi\.estimators: expected attack\.eps=0\.2 as in"),
        ({"data.limit": 100}, r"mi\.estimators: expected data\.limit=200 as in"),
        ({}, None),
    ],
)
def test_another_capacity_or_split_cannot_be_reused(staged, settings, problem):
    staged.write_config(tiny_config(STAGED))
    problems = pretrained_problems(tiny_config({"mi.estimators": str(staged.path), **settings}))
    if problem is None:
        assert problems == []
    else:
        (text,) = problems
        assert re.search(problem, text)


def test_a_run_without_pretrained_weights_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    assert (
        "is not a run of raymi"
        in pretrained_problems(tiny_config({"mi.estimators": "/nowhere"}))[0]
    )
    folder.write_config(tiny_config({"mi.adversarial": False}))
    text = "\n".join(pretrained_problems(tiny_config({"mi.estimators": str(tmp_path)})))
    assert "has no adversarial estimator: set mi.adversarial=false" in text
    assert "has no finished estimators" in text
    text = "\n".join(pretrained_problems(tiny_config({"mi.pretrained": str(tmp_path)})))
    assert "has no finished classifier" in text


def test_weights_of_other_training_images_are_refused(staged, tmp_path):
    """Though the settings look the same: the files behind them may have changed."""
    config = tiny_config({"mi.estimators": str(staged.path), "data.split_seed": 5})
    with pytest.raises(UserError, match=r"trained on other images .* reuse a run with the"):
        train(config, LocalContext("cpu"), RunFolder(tmp_path))
