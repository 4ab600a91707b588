"""Processes that die without a word at any place of a run: their successors end with its bits."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from gloo import run_ranks
from safetensors.torch import load_file
from test_loop import DROPOUT, events
from tiny_runs import same, tiny_config, tiny_run

from raymi.engine import loop, validation
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.engine.train_state import TrainState
from raymi.runs.checkpoint import load_checkpoint
from raymi.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow

JOINT = {
    "data.limit": 80, "optim.batch_size": 20, "checkpoint.every_steps": 2, "attack.steps": 1,
    "optim.ema": 0.9, "optim.awp": 0.02, "optim.awp_warmup": 0.5, "scaling.channels_last": True,
    "validation.steps": 1, "evaluation.steps": 1,
}  # fmt: skip
"""72 images in steps of 20, 20, 20 and 12, with a checkpoint after each second step."""

STAGED = {**JOINT, "mi.schedule": "staged", "mi.pretrain_epochs": 2, "mi.estimator_epochs": 2}
OWN_NETWORK = {**JOINT, **DROPOUT, "mi.bound": "dv", "data.generated_fraction": 0.4}
SETTINGS = {"joint": JOINT, "dropout and generated images": OWN_NETWORK, "staged": STAGED}
DEATHS = [
    (2, "joint", [1, 7]),
    (1, "dropout and generated images", [5]),
    (1, "staged", [7, 9, 23]),
]
EVERY_PHASE = [
    (workers, name, steps)
    for workers in (1, 2, 3)
    for name, steps in (
        ("joint", [1, 3, 7]),
        ("dropout and generated images", [5]),
        ("staged", [3, 7, 9, 15, 17, 23]),
    )
]
"""Workers, settings, and the steps of the whole run in which a worker dies. In the staged one 0 to
7 pretrain, 8 to 15 fit the estimators and 16 to 23 train the classifier; the odd ones are those
that begin without a checkpoint of their own."""

PLACES = {
    "save_checkpoint": loop,  # the process dies with the checkpoint written
    "save_weights": loop,  # on its way from phase to phase
    "fsync": os,  # with a file that has no name yet
    "evaluate_pgd": validation,  # while it validates, and in the end tests
}


def dying_run(rank, world_size, folder, settings, place, when):
    """A run of which one worker is killed: in the step of number `when`, or, with its work done, at
    the end of call number `when` of a function."""
    victim = when % world_size if place == "step" else 0
    owner, name = (TrainState, "step") if place == "step" else (PLACES[place], place)
    function, calls = getattr(owner, name), 0

    def dying(*args, **kwargs):
        nonlocal calls
        calls += 1
        if place == "step" and args[0].position.global_step == when:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if place != "step" and calls == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    if rank == victim:
        setattr(owner, name, dying)
    train(tiny_config(settings), LocalContext("cpu"), RunFolder(folder))
    return "no worker died"


def die(workers, folder, settings, place, when, tmp_path):
    """The run until one of its workers dies; the others are killed then."""
    with pytest.raises(RuntimeError, match=r"exit code -9|[Cc]onnection|peer"):
        run_ranks(dying_run, workers, folder, settings, place, when, tmp_path=tmp_path)


def expect_same_bits(one, other):
    """Equality of all weights that the runs leave, of their last checkpoints, and of what they
    measured; means over an epoch are summed in another order where workers began within it."""
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert files == sorted(path.name for path in other.glob("*.safetensors"))
    assert "last-averaged.safetensors" in files
    for file in files:
        assert same(load_file(one / file), load_file(other / file)), file
    first, second = (load_checkpoint(RunFolder(folder).checkpoints) for folder in (one, other))
    assert first.keys() == second.keys()
    for key in first:
        assert same(first[key], second[key]), key
    # events before a death may be repeated
    for kind, names in (("epoch", ("val",)), ("evaluation", ("clean", "robust"))):
        recorded = [
            {
                (e["phase"], e["epoch"], e.get("which")): {name: e[name] for name in names}
                for e in events(folder, kind)
            }
            for folder in (one, other)
        ]
        assert recorded[0] == recorded[1]
    means = [{e["global_step"]: e["train"] for e in events(f, "epoch")} for f in (one, other)]
    assert means[0].keys() == means[1].keys()
    for step, expected in means[0].items():
        assert means[1][step] == pytest.approx(expected, rel=1e-12, abs=1e-15), step


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Uninterrupted runs, each trained at its first use."""
    done = {}

    def run(workers, name, settings):
        if (workers, name) not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            run_ranks(tiny_run, workers, folder / "run", settings, [], tmp_path=folder)
            done[workers, name] = folder / "run"
        return done[workers, name]

    return run


def with_generated_images(settings, folder):
    if "data.generated_fraction" not in settings:
        return settings
    path = folder / "generated.npz"
    if not path.exists():
        images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
        np.savez(path, image=images, label=np.arange(50) % 10)
    return {**settings, "data.generated": str(path)}


@pytest.mark.parametrize(
    ("workers", "name", "steps"),
    [*DEATHS, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in EVERY_PHASE)],
)
def test_a_run_whose_workers_die_ends_with_the_same_bits(
    workers, name, steps, undisturbed, tmp_path, tmp_path_factory
):
    settings = with_generated_images(SETTINGS[name], tmp_path_factory.getbasetemp())
    whole = undisturbed(workers, name, settings)
    for step in steps:
        die(workers, tmp_path / "killed", settings, "step", step, tmp_path)
        newest = load_checkpoint(RunFolder(tmp_path / "killed").checkpoints)
        assert (newest is None) == (step == 1)
        assert newest is None or newest["position"]["global_step"] == step - 1
    run_ranks(tiny_run, workers, tmp_path / "killed", settings, [], tmp_path=tmp_path)
    expect_same_bits(whole, tmp_path / "killed")


FEW_PLACES = [("save_checkpoint", 5), ("save_weights", 1), ("fsync", 3), ("evaluate_pgd", 7)]
MORE_PLACES = [
    ("save_checkpoint", 4), ("save_checkpoint", 6), ("save_weights", 2), ("evaluate_pgd", 1),
    ("evaluate_pgd", 5),
]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "when"),
    [*FEW_PLACES, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in MORE_PLACES)],
)
def test_a_process_that_dies_between_two_steps_ends_with_the_same_bits(
    place, when, undisturbed, tmp_path
):
    whole = undisturbed(1, "staged", STAGED)
    die(1, tmp_path / "killed", STAGED, place, when, tmp_path)
    run_ranks(tiny_run, 1, tmp_path / "killed", STAGED, [], tmp_path=tmp_path)
    expect_same_bits(whole, tmp_path / "killed")
