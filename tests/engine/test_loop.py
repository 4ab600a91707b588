"""A run from its first step to its evaluation: interrupted, resumed, and recorded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gloo import run_ranks
from safetensors.torch import load_file
from tiny_runs import StoppingContext, same, tiny_config, tiny_run, tiny_splits, tiny_state

from raymi.engine import loop
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.engine.train_state import Best
from raymi.errors import UserError
from raymi.reporting.history import read_history
from raymi.runs.checkpoint import load_checkpoint, save_checkpoint
from raymi.runs.journal import JournalReader
from raymi.runs.run_folder import RunFolder

DROPOUT = {"model.name": "tiny_runs:dropout_net", "model.width": None, "model.depth": None}
RUNS = {
    "bounded": {},
    "paper": {"mi.form": "paper", "mi.hidden": 16, "optim.schedule": "cosine"},
    "user's network with dropout": {**DROPOUT, "mi.objective": "contrast"},
}


def events(folder, kind):
    return [e for e in JournalReader(RunFolder(folder).journal).new_events() if e["kind"] == kind]


def expect_equal_runs(one, other):
    for which in ("last", "best"):
        first, second = (load_file(RunFolder(f).weights(which)) for f in (one, other))
        assert same(first, second), which
    first, second = (load_checkpoint(RunFolder(f).checkpoints) for f in (one, other))
    for key in first:
        assert same(first[key], second[key]), key
    accuracies = [
        [(e["which"], e["of_epoch"], e["clean"], e["robust"]) for e in events(f, "evaluation")]
        for f in (one, other)
    ]
    assert accuracies[0] == accuracies[1]
    epochs = [[(e["epoch"], e["val"]) for e in events(f, "epoch")] for f in (one, other)]
    assert epochs[0] == epochs[1]


@pytest.mark.parametrize("stops", [[3], [0, 4, 5]], ids=str)
@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS.keys())
def test_a_run_that_was_stopped_and_resumed_is_the_uninterrupted_one(settings, stops, tmp_path):
    tiny_run(0, 1, tmp_path / "whole", settings, [])
    tiny_run(0, 1, tmp_path / "stopped", settings, stops)
    assert len(events(tmp_path / "stopped", "stopped")) == len(stops)
    expect_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_with_generated_images_continues_with_the_same_ones(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "generated.npz", image=images, label=np.arange(50) % 10)
    settings = {"data.generated": tmp_path / "generated.npz", "data.generated_fraction": 0.4}
    for name, stops in (("whole", []), ("stopped", [3, 4])):
        assert tiny_run(0, 1, tmp_path / name, settings, stops).finished
    expect_equal_runs(tmp_path / "whole", tmp_path / "stopped")
    (start,) = events(tmp_path / "whole", "start")
    assert start["data"]["sizes"]["generated"] == 50
    assert len(start["data"]["digests"]["generated"]) == 64


def test_images_that_splits_share_are_reported_at_each_start(tmp_path):
    copies = tiny_splits(tiny_config()).test.images[:3].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "generated.npz", image=copies, label=np.zeros(3, int))
    settings = {"data.generated": tmp_path / "generated.npz"}
    tiny_run(0, 1, tmp_path / "run", settings, [3])
    starts, warnings = (events(tmp_path / "run", kind) for kind in ("start", "warning"))
    assert [start["data"]["duplicates"] for start in starts] == [{"test/generated": 3}] * 2
    messages = [event["message"] for event in warnings]
    assert messages == [messages[0]] * 2
    assert "3 of 200 test images are also in generated (equal pixels)" in messages[0]
    RunFolder(tmp_path / "run").write_config(tiny_config(settings))
    assert read_history(RunFolder(tmp_path / "run")).warnings == (messages[0],)
    tiny_run(0, 1, tmp_path / "other", {}, [])
    (start,) = events(tmp_path / "other", "start")
    assert start["data"]["duplicates"] == {}
    assert events(tmp_path / "other", "warning") == []


EVERYTHING = {
    "mi.schedule": "staged", "mi.estimator_epochs": 1, "mi.pretrain_epochs": 1, "optim.epochs": 2,
    "optim.ema": 0.9, "optim.awp": 0.01, "optim.awp_warmup": 0, "loss.base": "trades",
    "scaling.precision": "bf16", "scaling.channels_last": True, "attack.norm": "l2",
    "attack.eps": 0.5, "attack.start": "gaussian", "attack.projection": "box-first",
    "optim.batch_size": 89, "probe.steps": 2, "probe.batch": 20, "mi.bound": "dv",
}  # fmt: skip
"""Batches of 89, 89 and 2 images: the last leaves the third of three workers without any."""


@pytest.mark.parametrize("workers", [1, 3])
def test_all_options_work_together(workers, tmp_path):
    run_ranks(tiny_run, workers, tmp_path / "run", EVERYTHING, [4, 2], tmp_path=tmp_path)
    assert len(events(tmp_path / "run", "stopped")) == 2
    names = [e["which"] for e in events(tmp_path / "run", "evaluation")]
    assert names[-4:] == ["last", "best", "last-averaged", "best-averaged"]
    for event in events(tmp_path / "run", "epoch"):
        assert all(math.isfinite(value) for value in (event["train"] | event["val"]).values())


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_several_workers_that_were_stopped_and_resumed_end_with_the_same_bits(workers, tmp_path):
    run_ranks(tiny_run, workers, tmp_path / "whole", {}, [], tmp_path=tmp_path)
    run_ranks(tiny_run, workers, tmp_path / "stopped", {}, [3, 4], tmp_path=tmp_path)
    stopped = events(tmp_path / "stopped", "stopped")
    assert [event["global_step"] for event in stopped] == [3, 6], "the second one while validating"
    expect_equal_runs(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("stop_at", [5, 11, 12], ids=["validating", "last epoch", "testing"])
def test_a_stop_takes_effect_during_validation_and_testing(stop_at, finished, tmp_path):
    tiny_run(0, 1, tmp_path, {}, [stop_at])
    assert len(events(tmp_path, "stopped")) == 1
    expect_equal_runs(finished[0].path, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    context = StoppingContext(folder.stop_file)
    train(tiny_config(), context, folder)
    return folder, context


def test_each_epoch_is_reported_once_with_its_checkpoint_on_disk(tmp_path):
    folder, seen = RunFolder(tmp_path), []

    class Watching(LocalContext):
        def report(self, metrics):
            seen.append((metrics["epoch"], load_checkpoint(folder.checkpoints)["position"]))

    train(tiny_config(), Watching("cpu"), folder)
    positions = [
        {"phase": "classifier", "epoch": e, "step": 0, "global_step": 5 * e} for e in (1, 2)
    ]
    assert seen == list(zip((1, 2), positions, strict=True))


def test_the_journal_records_the_whole_run(finished):
    folder, context = finished
    kinds = [event["kind"] for event in JournalReader(folder.journal).new_events()]
    assert kinds[0] == "start"
    assert kinds[-1] == "finished"
    assert [kinds.count(k) for k in ("step", "epoch", "evaluation")] == [10, 2, 2]
    assert [report["epoch"] for report in context.reports] == [1, 2]
    steps, epochs = events(folder.path, "step"), events(folder.path, "epoch")
    assert [e["global_step"] for e in steps] == list(range(1, 11))
    assert [e["global_step"] for e in epochs] == [5, 10]
    sizes = [44, 44, 44, 44, 4]
    for name, mean in epochs[0]["train"].items():
        of_steps = sum(n * e["metrics"][name] for n, e in zip(sizes, steps[:5], strict=True)) / 180
        assert mean == pytest.approx(of_steps, rel=1e-9), name


def test_a_finished_run_that_is_resumed_only_evaluates_again(finished):
    folder, _ = finished
    before = load_file(folder.weights("last"))
    outcome = train(tiny_config(), LocalContext("cpu"), folder)
    assert (outcome.finished, outcome.global_step) == (True, 10)
    assert len(events(folder.path, "epoch")) == 2
    assert same(before, load_file(folder.weights("last")))


def test_a_damaged_checkpoint_costs_one_epoch_and_a_warning(tmp_path):
    tiny_run(0, 1, tmp_path / "whole", {}, [])
    tiny_run(0, 1, tmp_path / "damaged", {}, [])
    newest = max(RunFolder(tmp_path / "damaged").checkpoints.iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is damaged"):
        train(tiny_config(), LocalContext("cpu"), RunFolder(tmp_path / "damaged"))
    assert [e["epoch"] for e in events(tmp_path / "damaged", "epoch")] == [1, 2, 2]
    first, second = (
        load_file(RunFolder(tmp_path / f).weights("last")) for f in ("whole", "damaged")
    )
    assert same(first, second)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_name_and_place(tmp_path):
    settings = {"optim.lr": 1e30, "optim.schedule": "constant"}
    with pytest.raises(
        FloatingPointError,
        match=r"got .*loss.* = (nan|inf) at step 2 \(phase classifier, epoch 1\): .*a lower lr.*"
        "there is no checkpoint yet",
    ):
        train(tiny_config(settings), LocalContext("cpu"), RunFolder(tmp_path))
    assert load_checkpoint(RunFolder(tmp_path).checkpoints) is None


def test_weights_that_no_loss_has_seen_broken_end_the_run(tmp_path):
    """Each loss is finite with one step per epoch, but BatchNorm's statistics are not."""
    settings = {"optim.lr": 1e9, "optim.batch_size": 180, "mi.weight": 0, "optim.epochs": 3}
    with pytest.raises(FloatingPointError, match=r"(losses|weights), got .* at step [123] \(phase"):
        train(tiny_config(settings), LocalContext("cpu"), RunFolder(tmp_path))


def test_every_module_is_checked():
    state, _ = tiny_state(tiny_config({"optim.ema": 0.9}))
    assert state.modules_not_finite() == []
    for module in (state.model, state.estimators, state.average.model):
        next(module.buffers()).fill_(math.inf)
    broken = ["the classifier", "the estimators", "the averaged classifier"]
    assert state.modules_not_finite() == broken


def test_broken_weights_are_not_saved_by_a_stop(tmp_path):
    folder = RunFolder(tmp_path)
    settings = {"optim.lr": 1e30, "optim.schedule": "constant", "tracking.log_every": 1000}
    with pytest.raises(FloatingPointError):
        train(tiny_config(settings), StoppingContext(folder.stop_file, 4), folder)
    assert load_checkpoint(folder.checkpoints) is None


def test_a_worker_without_images_needs_global_batchnorm(tmp_path):
    settings = {"scaling.sync_batchnorm": False, "optim.batch_size": 89}  # the last batch has 2
    with pytest.raises(UserError, match="the last batch of an epoch has 2 images for 3 workers"):
        run_ranks(tiny_run, 3, tmp_path / "run", settings, [], tmp_path=tmp_path)


@pytest.mark.parametrize("model", ["tiny_runs:vector_net", "tiny_runs:dropout_net"])
def test_a_last_batch_of_one_image_is_refused_where_batchnorm_cannot_take_it(model, tmp_path):
    one = len(tiny_splits(tiny_config()).train) - 1
    config = tiny_config(
        {**DROPOUT, "model.name": model, "optim.batch_size": one, "optim.epochs": 1}
    )
    if model == "tiny_runs:dropout_net":  # its BatchNorm averages over pixels, too
        assert train(config, LocalContext(), RunFolder(tmp_path)).finished
        return
    with pytest.raises(UserError, match=r"set another optim\.batch_size"):
        train(config, LocalContext(), RunFolder(tmp_path))


def test_tied_weights_are_saved(tmp_path):
    config = tiny_config({**DROPOUT, "model.name": "tiny_runs:tied_net", "optim.epochs": 1})
    assert train(config, LocalContext(), RunFolder(tmp_path)).finished
    weights = load_file(RunFolder(tmp_path).weights("last"))
    assert weights["net.1.weight"].equal(weights["net.3.weight"])


def test_a_checkpoint_of_another_format_is_refused_with_the_remedy(tmp_path):
    folder, (state, _) = RunFolder(tmp_path), tiny_state(tiny_config())
    save_checkpoint(folder.checkpoints, 1, {**state.state_dict(), "format": 99}, keep=2)
    with pytest.raises(UserError, match="expected a checkpoint of format 2, got 99: continue it"):
        train(tiny_config(), LocalContext(), folder)


def test_the_best_epoch_has_the_highest_robust_then_clean_accuracy():
    best, model = Best(), torch.nn.Linear(1, 1)
    offers = [(0.3, 0.9), (0.4, 0.5), (0.4, 0.6), (0.4, 0.6), (0.3, 1.0)]
    taken = []
    for epoch, (robust, clean) in enumerate(offers, start=1):
        with torch.no_grad():
            model.weight.fill_(epoch)
        taken.append(best.offer(epoch, robust, clean, model))
    assert taken == [True, True, True, False, False]
    assert (best.epoch, best.weights["weight"].item()) == (3, 3.0)


def test_the_first_evaluated_epoch_is_the_best_so_far_even_at_zero():
    assert Best().offer(1, 0.0, 0.0, torch.nn.Linear(1, 1))
    assert not Best(1, 0.0, 0.0).offer(2, math.nan, 1.0, torch.nn.Linear(1, 1))


def test_best_is_chosen_on_validation_and_its_weights_are_the_saved_ones(finished):
    folder, _ = finished
    best = load_checkpoint(folder.checkpoints)["best"][""]
    epochs = events(folder.path, "epoch")
    scores = [(e["val"]["robust_acc"], e["val"]["clean_acc"]) for e in epochs]
    assert (best["robust_acc"], best["clean_acc"]) == max(scores)
    assert same(best["weights"], load_file(folder.weights("best")))
    assert events(folder.path, "evaluation")[1]["of_epoch"] == best["epoch"]


def saved_steps(folder, monkeypatch):
    """Steps at which checkpoints are written from now on."""
    steps, save = [], loop.save_checkpoint
    monkeypatch.setattr(
        loop,
        "save_checkpoint",
        lambda place, step, *rest: (steps.append(step), save(place, step, *rest)),
    )
    return steps


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [5, 10]),
        ({"every_steps": 2}, [2, 4, 5, 6, 8, 10, 10]),
        ({"every_minutes": 1e-9}, [*range(1, 6), 5, *range(6, 11), 10]),
        ({"every_minutes": 60}, [5, 10]),
        ({"every": 2}, [10]),
    ],
    ids=str,
)
def test_checkpoints_come_when_they_are_due(settings, expected, tmp_path, monkeypatch):
    steps = saved_steps(tmp_path, monkeypatch)
    settings = {f"checkpoint.{key}": value for key, value in settings.items()}
    tiny_run(0, 1, tmp_path, settings, [])
    assert steps == expected


def test_a_checkpoint_is_written_when_the_context_requests_one(tmp_path, monkeypatch):
    steps = saved_steps(tmp_path, monkeypatch)

    class Warned(LocalContext):
        asked = 0

        def checkpoint_requested(self):
            self.asked += 1
            return self.asked == 3

    train(tiny_config(), Warned("cpu"), RunFolder(tmp_path))
    assert steps == [3, 5, 10]


def crash_at(rank, world_size, folder, settings, step):
    """A run whose worker is gone at a step, without a word."""

    class Crashing(LocalContext):
        def stop_requested(self):
            self.asked = getattr(self, "asked", -1) + 1
            if self.asked == step:
                raise KeyboardInterrupt
            return super().stop_requested()

    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(settings), Crashing("cpu"), RunFolder(folder))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_crash_within_an_epoch_costs_the_steps_since_the_last_checkpoint(workers, tmp_path):
    settings = {"checkpoint.every_steps": 2, "mi.schedule": "staged", "optim.ema": 0.9}
    run_ranks(tiny_run, workers, tmp_path / "whole", settings, [], tmp_path=tmp_path)
    run_ranks(crash_at, workers, tmp_path / "crashed", settings, 4, tmp_path=tmp_path)
    newest = load_checkpoint(RunFolder(tmp_path / "crashed").checkpoints)["position"]
    assert (newest["phase"], newest["step"]) == ("pretraining", 4)
    run_ranks(tiny_run, workers, tmp_path / "crashed", settings, [], tmp_path=tmp_path)
    expect_equal_runs(tmp_path / "whole", tmp_path / "crashed")


def test_a_run_ends_at_its_deadline_with_a_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    assert not train(tiny_config(), LocalContext("cpu", None, deadline=1.0), folder).finished
    assert load_checkpoint(folder.checkpoints)["position"]["global_step"] == 0
    later = LocalContext("cpu", None, deadline=4e9)
    assert train(tiny_config(), later, folder).finished
