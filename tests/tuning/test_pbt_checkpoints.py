"""Taking over another run's work: what continues from it, what a kill leaves, what is refused."""

from __future__ import annotations

import copy
import io
import os
import re
import shutil
import signal

import pytest
from gloo import run_ranks
from raymi_command import events
from rich.console import Console
from safetensors.torch import load_file
from tiny_runs import TINY, same, tiny_config

from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.errors import StorageError, UserError
from raymi.runs import checkpoint
from raymi.runs.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from raymi.runs.run_folder import RunFolder
from raymi.terminal.progress import ProgressDisplay
from raymi.tracking.journal_metrics import event_metrics
from raymi.tuning import pbt_checkpoints
from raymi.tuning.pbt import first_generation, next_generation
from raymi.tuning.pbt_checkpoints import can_transfer, transfer_checkpoint
from raymi.tuning.space import Space, find_space
from raymi.tuning.space_files import known_spaces

COMMON = {"data.limit": 100, "optim.epochs": 3, "optim.schedule": "cosine", "optim.ema": 0.9}
LEADER = COMMON | {"optim.lr": 0.1, "mi.balance": 0.3}
FOLLOWER = COMMON | {
    "optim.lr": 0.02, "optim.momentum": 0.5, "optim.weight_decay": 0.01, "mi.balance": 0.1,
    "mi.estimator_lr": 3e-3, "mi.temperature": 0.2, "optim.ema": 0.8,
}  # fmt: skip
STEPS = 3  # of an epoch


def trained(folder, settings, until_epoch=None, context=None):
    train(tiny_config(settings), context or LocalContext("cpu"), folder, until_epoch=until_epoch)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs after an epoch; use copies of them."""
    home = tmp_path_factory.mktemp("pair")
    trained(RunFolder(home / "leader"), LEADER, 1)
    trained(RunFolder(home / "follower"), FOLLOWER | {"mi.balance": 0.9}, 1)
    return home


@pytest.fixture
def both(pair, tmp_path):
    shutil.copytree(pair, tmp_path / "runs")
    return RunFolder(tmp_path / "runs" / "leader"), RunFolder(tmp_path / "runs" / "follower")


def learnt(folder):
    """What a run has learnt, without what it was measured to be."""
    content = load_checkpoint(folder.checkpoints)
    return {key: content[key] for key in ("position", "model", "average", "estimators", "learners")}


def test_the_follower_goes_on_as_the_leader_would_with_its_settings(both, tmp_path):
    leader, follower = both
    twin = RunFolder(tmp_path / "twin")
    shutil.copytree(leader.path, twin.path)
    transfer_checkpoint(leader, follower, 1)
    assert same(learnt(follower), learnt(leader))
    assert not same(learnt(follower)["model"], learnt(trained(twin, LEADER, 2))["model"])
    shutil.rmtree(twin.path)
    shutil.copytree(leader.path, twin.path)
    trained(twin, FOLLOWER, 2)
    trained(follower, FOLLOWER, 2)
    assert same(learnt(follower), learnt(twin))
    sgd, adam = (
        learnt(follower)["learners"][name]["optimizer"]["param_groups"][0]
        for name in ("classifier", "critics")
    )
    assert (sgd["initial_lr"], sgd["momentum"], sgd["weight_decay"]) == (0.02, 0.5, 0.01)
    assert adam["lr"] == 3e-3
    whole = trained(RunFolder(tmp_path / "whole"), FOLLOWER)
    trained(follower, FOLLOWER)
    trained(twin, FOLLOWER)
    for which in ("last", "last-averaged"):
        assert same(load_file(follower.weights(which)), load_file(twin.weights(which)))
        assert not same(load_file(follower.weights(which)), load_file(whole.weights(which)))
    rates = [{e["global_step"]: e["lr"] for e in events(f.path, "step")} for f in (whole, follower)]
    assert len(rates[0]) == 3 * STEPS
    assert all(rates[1][step] == rates[0][step] for step in range(STEPS + 1, 3 * STEPS + 1))


@pytest.mark.parametrize("own", [0.0, 0.99])
def test_the_better_of_both_best_epochs_is_kept(own, both):
    leader, follower = both
    content = load_checkpoint(follower.checkpoints)
    content["best"][""] |= {"robust_acc": own}
    save_checkpoint(follower.checkpoints, STEPS, content, 2)
    theirs = load_checkpoint(leader.checkpoints)["best"]
    for _ in range(2):
        transfer_checkpoint(leader, follower, 1)
        best = load_checkpoint(follower.checkpoints)["best"]
        assert same(best[""], content["best"][""] if own > 0.5 else theirs[""])
    (event,) = events(follower.path, "exploited")
    assert event["best"][""]["run"] == ("follower" if own > 0.5 else "leader")
    assert event["best"][""]["robust_acc"] == best[""]["robust_acc"]


def test_the_journal_says_so_and_those_who_do_not_know_it_pass_over_it(both):
    leader, follower = both
    transfer_checkpoint(leader, follower, 1)
    (event,) = events(follower.path, "exploited")
    place = {"phase": "classifier", "epoch": 1, "step": 0, "global_step": STEPS}
    assert event | place | {"from": "leader"} == event
    console = Console(file=io.StringIO(), width=120)
    with ProgressDisplay(console, tiny_config(FOLLOWER)) as display:
        for one in events(follower.path):
            display.event(one)
    assert "exploited" not in console.file.getvalue()
    told = {"step": 0, "epoch_step": 0, "evaluations": {}, "probed": False}
    assert event_metrics(event, told) == ({}, 1, {}), "no metric, and nothing else"


def test_what_was_done_is_not_done_again_when_the_leader_has_gone_on(both):
    leader, follower = both
    transfer_checkpoint(leader, follower, 1)
    trained(leader, LEADER, 2)
    trained(follower, FOLLOWER, 2)
    before = newest_checkpoint(follower.checkpoints)
    transfer_checkpoint(leader, follower, 1)
    assert newest_checkpoint(follower.checkpoints) == before
    assert len(events(follower.path, "exploited")) == 1
    transfer_checkpoint(leader, follower, 2)
    assert same(learnt(follower), learnt(leader))


class Killed(BaseException):
    """A process that ends without a word."""


def dying_at(patch, owner, name, when, die):
    """Lets a process die with call number `when` of a function done."""
    function, calls = getattr(owner, name), 0

    def dying(*args, **kwargs):
        nonlocal calls
        calls += 1
        result = function(*args, **kwargs)
        if calls == when:
            die()
        return result

    patch(owner, name, dying)


def raise_killed():
    raise Killed


PLACES = [
    (pbt_checkpoints, "load_checkpoint", 2),
    (os, "fsync", 1),  # the new checkpoint has no name yet
    (checkpoint, "write_atomically", 1),  # it is there beside the old one
    (checkpoint, "sync_folder", 1),  # the old one is gone
    (pbt_checkpoints.Journal, "write", 1),
    (pbt_checkpoints.Journal, "sync", 1),
]


def expect_old_or_new(old, new, leader, follower):
    assert same(learnt(follower), old) or same(learnt(follower), new)
    transfer_checkpoint(leader, follower, 1)
    assert same(learnt(follower), new)
    assert len(list(follower.checkpoints.iterdir())) == 1
    assert len(events(follower.path, "exploited")) == 1


@pytest.mark.parametrize(("owner", "name", "when"), PLACES, ids=[name for _, name, _ in PLACES])
def test_a_kill_leaves_the_old_state_or_the_new_one(owner, name, when, both, monkeypatch):
    leader, follower = both
    old, new = learnt(follower), learnt(leader)
    with monkeypatch.context() as patched:
        dying_at(patched.setattr, owner, name, when, raise_killed)
        with pytest.raises(Killed):
            transfer_checkpoint(leader, follower, 1)
    expect_old_or_new(old, new, leader, follower)


def exploited_by_a_process_that_is_killed(rank, world_size, leader, follower, place):
    dying_at(setattr, *PLACES[place], lambda: os.kill(os.getpid(), signal.SIGKILL))
    transfer_checkpoint(RunFolder(leader), RunFolder(follower), 1)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(PLACES)), ids=[name for _, name, _ in PLACES])
def test_so_it_is_with_real_processes(place, both, tmp_path):
    leader, follower = both
    old, new = learnt(follower), learnt(leader)
    paths = leader.path, follower.path
    with pytest.raises(RuntimeError, match="exit code -9"):
        run_ranks(exploited_by_a_process_that_is_killed, 1, *paths, place, tmp_path=tmp_path)
    expect_old_or_new(old, new, leader, follower)


class DyingContext(LocalContext):
    """A place whose process dies before a step."""

    def __init__(self, steps):
        super().__init__("cpu")
        self.left = steps

    def stop_requested(self):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return False


@pytest.mark.parametrize("steps", [0, 1, 2, STEPS])
def test_a_follower_that_is_killed_on_its_way_comes_to_the_same(steps, both, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(both[0].path.parent, undisturbed)
    for leader, follower, dies in (
        (RunFolder(undisturbed / "leader"), RunFolder(undisturbed / "follower"), False),
        (*both, True),
    ):
        settings = FOLLOWER | {"checkpoint.every_steps": 2}
        transfer_checkpoint(leader, follower, 1)
        if dies:
            with pytest.raises(Killed):
                trained(follower, settings, 2, DyingContext(steps))
            trained(leader, LEADER, 2)
            transfer_checkpoint(leader, follower, 1)
        trained(follower, settings, 2)
    assert same(learnt(RunFolder(undisturbed / "follower")), learnt(both[1]))


def test_a_follower_needs_nothing_of_its_own(both, tmp_path):
    leader, follower = both
    transfer_checkpoint(leader, RunFolder(tmp_path / "new"), 1)
    assert same(learnt(RunFolder(tmp_path / "new")), learnt(leader))
    damaged = newest_checkpoint(follower.checkpoints)
    damaged.write_bytes(b"")
    transfer_checkpoint(leader, follower, 1)
    assert same(learnt(follower), learnt(leader))


def test_a_leader_that_is_elsewhere_is_not_taken_over_from(both, tmp_path):
    leader, follower = both
    before = newest_checkpoint(follower.checkpoints)
    with pytest.raises(UserError, match=r"expected a checkpoint after epoch 2 .* got one after ep"):
        transfer_checkpoint(leader, follower, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"after epoch 1 in .*empty.*, got none: members of a popu"):
        transfer_checkpoint(RunFolder(tmp_path / "empty"), follower, 1)
    with (
        leader.lock(),
        pytest.raises(UserError, match="leader is running in another process"),
    ):
        transfer_checkpoint(leader, follower, 1)
    with (
        follower.lock(),
        pytest.raises(UserError, match="follower is going on in another pro"),
    ):
        transfer_checkpoint(leader, follower, 1)
    assert newest_checkpoint(follower.checkpoints) == before
    assert not events(follower.path, "exploited")


def test_a_full_disk_is_said_with_its_remedy(both, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(StorageError, match=r"cannot write .*follower .*free space there"):
        transfer_checkpoint(*both, 1)


def test_a_population_is_searched_and_cut_off_anywhere_it_comes_to_the_same(tmp_path):
    parameters = {"optim.lr": {"log": (0.001, 0.3)}, "mi.balance": {"log": (0.05, 0.5)}}
    space = Space(name="two", description="", parameters=parameters)

    def searched(home, killed_at=None):
        """The search as `population` tells it, from its beginning."""
        calls, plans, told = 0, first_generation(space, 0, 3), []

        def work(function, *args):
            nonlocal calls
            if calls == killed_at:
                raise Killed
            calls += 1
            return function(*args)

        folders = [RunFolder(home / str(plan.member)) for plan in plans]
        for generation in (1, 2, 3):
            told.append(plans)
            for plan in plans:
                if plan.parent is not None:
                    leader, follower = folders[plan.parent], folders[plan.member]
                    work(transfer_checkpoint, leader, follower, generation - 1)
            for plan in plans:
                settings = COMMON | {"optim.ema": 0.0} | plan.values
                work(trained, folders[plan.member], settings, generation)
            results = [
                {e["epoch"]: e["val"]["robust_acc"] for e in events(folder.path, "epoch")}
                for folder in folders
            ]
            reached = [result[generation] for result in results]
            plans = next_generation(space, 0, generation, plans, reached)
        return told, [learnt(folder) for folder in folders]

    told, expected = searched(tmp_path / "whole")
    assert any(plan.parent is not None for plan in told[1])
    for killed_at in (2, 4, 5, 9):
        with pytest.raises(Killed):
            searched(tmp_path / "cut", killed_at)
    assert same(searched(tmp_path / "cut"), (told, expected))


LR = {"optim.lr": {"log": (0.01, 0.1)}}
ONE = {"scaling.workers": 1}


def refusal(parameters, recipe="quickstart", interval=1, **settings):
    space = Space(name="mine", description="", parameters=LR | parameters)
    return can_transfer(space, recipe, ONE | settings, interval)


@pytest.mark.parametrize(
    ("key", "parameter"),
    [
        ("mi.balance", {"log": (0.02, 1.0)}),
        ("mi.difference", {"uniform": (0.0, 2.0)}),
        ("mi.temperature", {"log": (0.03, 0.5)}),
        ("mi.estimator_lr", {"log": (1e-4, 1e-2)}),
        ("mi.samples", {"choice": ("all", "selected")}),
        ("optim.weight_decay", {"log": (1e-5, 1e-3)}),
        ("optim.momentum", {"uniform": (0.0, 0.99)}),
        ("optim.schedule", {"choice": ("cosine", "onecycle")}),
        ("optim.ema", {"choice": (0.99, 0.999)}),
        ("attack.steps", {"integers": (1, 10)}),
        ("loss.label_smoothing", {"uniform": (0.0, 0.3)}),
    ],
)
def test_what_counts_from_the_next_step_on_can_be_searched(key, parameter):
    assert refusal({key: parameter}) is None


@pytest.mark.parametrize(
    ("key", "parameter", "words"),
    [
        (
            "mi.hidden",
            {"choice": (16, 64)},
            "one of mi.hidden=16 does not fit into a run of mi.hidden=64",
        ),
        ("mi.base_width", {"choice": (16, 32)}, "does not fit into a run of mi.base_width="),
        ("mi.depth", {"integers": (1, 2)}, "does not fit into a run of mi.depth="),
        ("mi.balance", {"uniform": (0.0, 1.0)}, "does not fit into a run of mi.balance=0"),
        ("mi.weight", {"choice": (0.0, 1.0)}, "does not fit into a run of mi.weight="),
        ("mi.natural", {"choice": (True, False)}, "does not fit into a run of mi.natural="),
        ("optim.ema", {"choice": (0.0, 0.9)}, "does not fit into a run of optim.ema="),
        ("mi.bound", {"choice": ("infonce", "dv")}, "mi.bound cannot change within a run (the es"),
        ("mi.score", {"choice": ("cosine", "dot")}, "mi.score cannot change"),
        ("mi.form", {"choice": ("bounded", "wmim")}, "mi.form cannot change"),
        ("mi.gradient", {"choice": ("mi", "random")}, "mi.gradient cannot change"),
        ("mi.schedule", {"choice": ("joint", "staged")}, "where in their training they are"),
        ("mi.estimator_epochs", {"integers": (1, 3)}, "where in their training they are"),
        ("model.width", {"uniform": (0.5, 1.0)}, "the network would be another one"),
        ("data.val_fraction", {"uniform": (0.1, 0.5)}, "the images would be other ones"),
        ("attack.eps", {"uniform": (0.1, 0.2)}, "cannot be compared"),
        ("validation.steps", {"integers": (1, 9)}, "cannot be compared"),
        ("loss.base", {"choice": ("at", "trades")}, "a run would be of several methods"),
        ("optim.epochs", {"integers": (1, 9)}, "where in their training they are"),
        ("optim.batch_size", {"choice": (32, 64)}, "where in their training they are"),
        ("seed", {"integers": (0, 9)}, "seed cannot change within a run (it is fixed when a run"),
        ("scaling.compile", {"choice": (True, False)}, "it is fixed when a run begins"),
    ],
)
def test_what_does_not_fit_or_changes_the_run_is_refused_with_the_remedy(key, parameter, words):
    said = refusal({key: parameter})
    assert said.startswith("PBT ")
    assert words in said
    assert ": take tune.search=tpe, or a space without " in said
    assert "\n" not in said


def test_critics_that_come_and_go_are_refused():
    terms = {"choice": {"both": {}, "natural": {"mi.adversarial": False}}}
    said = refusal({"terms": terms})
    assert re.search(r"one of terms=(\w+) does not fit into a run of terms=(?!\1)", said)


def test_so_are_runs_that_cannot_be_compared_after_a_generation():
    staged = refusal({}, recipe="paper-cifar10-linf")
    assert (
        "got pretraining, estimators, classifier (mi.schedule=staged): set mi.schedule=" in staged
    )
    assert refusal({}, **{"mi.schedule": "staged", "mi.estimators": "earlier"}) is None
    assert "needs trials of one worker, got scaling.workers=2: set scaling.workers=1" in refusal(
        {}, **{"scaling.workers": 2}
    )
    seldom = refusal({}, interval=3, **{"validation.every": 2})
    assert "validation.every=2 does not measure them there: set validation.every=1" in seldom
    assert refusal({}, interval=4, **{"validation.every": 2}) is None


def test_every_space_has_an_answer():
    answers = {
        name: can_transfer(find_space(name), "quickstart", ONE, 1) for name in known_spaces()
    }
    assert "mi.bound cannot change" in answers["estimator_capacity"]
    assert "terms=" in answers["mi_weights"]
    assert "mi.hidden=" in answers["smoke"]
    assert answers["mi_rates"] is None


def test_a_space_that_can_be_searched_builds_checkpoints_that_fit(both):
    assert refusal({key: {"log": (0.01, 0.9)} for key in ("mi.balance", "mi.temperature")}) is None
    leader, follower = both
    wider = copy.deepcopy(FOLLOWER) | {"mi.hidden": TINY["mi.hidden"] * 2}
    transfer_checkpoint(leader, follower, 1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        trained(follower, wider, 2)
