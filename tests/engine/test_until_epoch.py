"""A run trained in parts, each up to an epoch, equals the uninterrupted run."""

from __future__ import annotations

import pytest
from gloo import run_ranks
from test_loop import events, expect_equal_runs
from tiny_runs import tiny_config, tiny_run

from raymi.engine.context import LocalContext, StopReason
from raymi.engine.loop import TrainResult, train
from raymi.runs.checkpoint import load_checkpoint
from raymi.runs.run_folder import RunFolder

THREE = {"data.limit": 100, "optim.epochs": 3, "optim.ema": 0.9, "checkpoint.every": 3}
STAGED = {**THREE, "mi.schedule": "staged", "mi.pretrain_epochs": 1, "mi.estimator_epochs": 1}
STEPS = 3  # of an epoch


def part(rank, world_size, folder, settings, until_epoch):
    context = LocalContext("cpu")
    return train(tiny_config(settings), context, RunFolder(folder), until_epoch=until_epoch)


@pytest.mark.parametrize(("settings", "before"), [(THREE, 0), (STAGED, 2)], ids=["joint", "staged"])
def test_parts_make_the_whole_bit_for_bit(settings, before, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny_run(0, 1, whole, settings, [])
    for epoch in (1, 2):
        outcome = part(0, 1, parts, settings, epoch)
        assert outcome == TrainResult(StopReason.EPOCH, epoch, STEPS * (before + epoch))
        position = load_checkpoint(RunFolder(parts).checkpoints)["position"]
        assert (position["phase"], position["epoch"], position["step"]) == ("classifier", epoch, 0)
        assert not events(parts, "evaluation")
    assert part(0, 1, parts, settings, 3).finished
    expect_equal_runs(whole, parts)
    rates = [[e["lr"] for e in events(folder, "step")] for folder in (whole, parts)]
    assert rates[0] == rates[1]


def test_a_finished_part_is_not_repeated(tmp_path):
    part(0, 1, tmp_path, THREE, 2)
    (file,) = RunFolder(tmp_path).checkpoints.iterdir()
    before = file.stat().st_mtime_ns
    for epoch in (2, 1):
        assert part(0, 1, tmp_path, THREE, epoch) == TrainResult(StopReason.EPOCH, 2, 2 * STEPS)
    assert file.stat().st_mtime_ns == before
    assert len(events(tmp_path, "epoch")) == 2
    assert len(events(tmp_path, "stopped")) == 3


@pytest.mark.exhaustive
def test_several_workers_stop_together(tmp_path):
    two = {**THREE, "optim.epochs": 2}
    run_ranks(tiny_run, 2, tmp_path / "whole", two, [], tmp_path=tmp_path)
    for epoch in (1, None):
        run_ranks(part, 2, tmp_path / "parts", two, epoch, tmp_path=tmp_path)
    expect_equal_runs(tmp_path / "whole", tmp_path / "parts")
