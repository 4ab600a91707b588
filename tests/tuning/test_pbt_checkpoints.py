"""PBT checkpoint transfer: exact continuation, kills, refusals."""

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
from raymi.tuning.pbt_checkpoints import transfer_checkpoint, transfer_problem
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
    """Two runs after an epoch, to be copied by tests."""
    home = tmp_path_factory.mktemp("pair")
    trained(RunFolder(home / "leader"), LEADER, 1)
    trained(RunFolder(home / "follower"), FOLLOWER | {"mi.balance": 0.9}, 1)
    return home


@pytest.fixture
def both(pair, tmp_path):
    shutil.copytree(pair, tmp_path / "runs")
    return RunFolder(tmp_path / "runs" / "leader"), RunFolder(tmp_path / "runs" / "follower")


def learned_state(folder):
    """Returns the trained state of a run, without its accuracies."""
    content = load_checkpoint(folder.checkpoints)
    return {key: content[key] for key in ("position", "model", "average", "estimators", "learners")}


def test_the_follower_continues_as_the_leader_would_with_its_settings(both, tmp_path):
    leader, follower = both
    twin = RunFolder(tmp_path / "twin")
    shutil.copytree(leader.path, twin.path)
    transfer_checkpoint(leader, follower, 1)
    assert same(learned_state(follower), learned_state(leader))
    assert not same(
        learned_state(follower)["model"], learned_state(trained(twin, LEADER, 2))["model"]
    )
    shutil.rmtree(twin.path)
    shutil.copytree(leader.path, twin.path)
    trained(twin, FOLLOWER, 2)
    trained(follower, FOLLOWER, 2)
    assert same(learned_state(follower), learned_state(twin))
    sgd, adam = (
        learned_state(follower)["learners"][name]["optimizer"]["param_groups"][0]
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
def test_the_better_of_both_best_epochs_stays(own, both):
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


def test_the_journal_records_the_transfer_and_displays_ignore_it(both):
    leader, follower = both
    transfer_checkpoint(leader, follower, 1)
    (event,) = events(follower.path, "exploited")
    position = {"phase": "classifier", "epoch": 1, "step": 0, "global_step": STEPS}
    assert event | position | {"from": "leader"} == event
    console = Console(file=io.StringIO(), width=120)
    with ProgressDisplay(console, tiny_config(FOLLOWER)) as display:
        for one in events(follower.path):
            display.event(one)
    assert "exploited" not in console.file.getvalue()
    told = {"step": 0, "epoch_step": 0, "evaluations": {}, "probed": False}
    assert event_metrics(event, told) == ({}, 1, {}), "no metric, and nothing else"


def test_a_transfer_is_not_repeated_after_the_leader_has_continued(both):
    leader, follower = both
    transfer_checkpoint(leader, follower, 1)
    trained(leader, LEADER, 2)
    trained(follower, FOLLOWER, 2)
    before = newest_checkpoint(follower.checkpoints)
    transfer_checkpoint(leader, follower, 1)
    assert newest_checkpoint(follower.checkpoints) == before
    assert len(events(follower.path, "exploited")) == 1
    transfer_checkpoint(leader, follower, 2)
    assert same(learned_state(follower), learned_state(leader))


class Killed(BaseException):
    """Kill of a process."""


def dying_at(patch, owner, name, when, die):
    """Kills the process after call number `when` of a function."""
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


KILL_POINTS = [
    (pbt_checkpoints, "load_checkpoint", 2),
    (os, "fsync", 1),  # the new checkpoint has no name yet
    (checkpoint, "write_atomically", 1),  # both checkpoints exist
    (checkpoint, "sync_folder", 1),  # the old one is gone
    (pbt_checkpoints.Journal, "write", 1),
    (pbt_checkpoints.Journal, "sync", 1),
]


def expect_old_or_new(old, new, leader, follower):
    assert same(learned_state(follower), old) or same(learned_state(follower), new)
    transfer_checkpoint(leader, follower, 1)
    assert same(learned_state(follower), new)
    assert len(list(follower.checkpoints.iterdir())) == 1
    assert len(events(follower.path, "exploited")) == 1


@pytest.mark.parametrize(
    ("owner", "name", "when"), KILL_POINTS, ids=[name for _, name, _ in KILL_POINTS]
)
def test_a_kill_leaves_the_old_state_or_the_new_one(owner, name, when, both, monkeypatch):
    leader, follower = both
    old, new = learned_state(follower), learned_state(leader)
    with monkeypatch.context() as patched:
        dying_at(patched.setattr, owner, name, when, raise_killed)
        with pytest.raises(Killed):
            transfer_checkpoint(leader, follower, 1)
    expect_old_or_new(old, new, leader, follower)


def transfer_and_kill(rank, world_size, leader, follower, point):
    dying_at(setattr, *KILL_POINTS[point], lambda: os.kill(os.getpid(), signal.SIGKILL))
    transfer_checkpoint(RunFolder(leader), RunFolder(follower), 1)


@pytest.mark.slow
@pytest.mark.parametrize("point", range(len(KILL_POINTS)), ids=[name for _, name, _ in KILL_POINTS])
def test_a_real_kill_leaves_the_old_state_or_the_new_one(point, both, tmp_path):
    leader, follower = both
    old, new = learned_state(follower), learned_state(leader)
    paths = leader.path, follower.path
    with pytest.raises(RuntimeError, match="exit code -9"):
        run_ranks(transfer_and_kill, 1, *paths, point, tmp_path=tmp_path)
    expect_old_or_new(old, new, leader, follower)


class DyingContext(LocalContext):
    """Context whose process is killed before a step."""

    def __init__(self, steps):
        super().__init__("cpu")
        self.left = steps

    def stop_requested(self):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return


@pytest.mark.parametrize("steps", [0, 1, 2, STEPS])
def test_a_killed_follower_ends_in_the_same_state(steps, both, tmp_path):
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
    assert same(learned_state(RunFolder(undisturbed / "follower")), learned_state(both[1]))


def test_a_follower_needs_no_checkpoint(both, tmp_path):
    leader, follower = both
    transfer_checkpoint(leader, RunFolder(tmp_path / "new"), 1)
    assert same(learned_state(RunFolder(tmp_path / "new")), learned_state(leader))
    damaged = newest_checkpoint(follower.checkpoints)
    damaged.write_bytes(b"")
    transfer_checkpoint(leader, follower, 1)
    assert same(learned_state(follower), learned_state(leader))


def test_a_leader_at_another_position_is_refused(both, tmp_path):
    leader, follower = both
    before = newest_checkpoint(follower.checkpoints)
    with pytest.raises(UserError, match=r"expected a checkpoint after epoch 2 .* got one after ep"):
        transfer_checkpoint(leader, follower, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"after epoch 1 in .*empty.*, got none: only the sweep may"
    ):
        transfer_checkpoint(RunFolder(tmp_path / "empty"), follower, 1)
    with (
        leader.lock(),
        pytest.raises(UserError, match="leader is running in another process"),
    ):
        transfer_checkpoint(leader, follower, 1)
    with (
        follower.lock(),
        pytest.raises(UserError, match="follower is running in another pro"),
    ):
        transfer_checkpoint(leader, follower, 1)
    assert newest_checkpoint(follower.checkpoints) == before
    assert not events(follower.path, "exploited")


def test_a_full_disk_is_reported_with_its_remedy(both, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(StorageError, match=r"cannot write .*follower .*free space there"):
        transfer_checkpoint(*both, 1)


def test_an_interrupted_search_ends_in_the_same_state(tmp_path):
    parameters = {"optim.lr": {"log": (0.001, 0.3)}, "mi.balance": {"log": (0.05, 0.5)}}
    space = Space(name="two", description="", parameters=parameters)

    def searched(home, killed_at=None):
        """Searches as the docstring of `pbt` describes."""
        calls, plans, history = 0, first_generation(space, 0, 3), []

        def work(function, *args):
            nonlocal calls
            if calls == killed_at:
                raise Killed
            calls += 1
            return function(*args)

        folders = [RunFolder(home / str(plan.member)) for plan in plans]
        for generation in (1, 2, 3):
            history.append(plans)
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
            robust = [result[generation] for result in results]
            plans = next_generation(space, 0, generation, plans, robust)
        return history, [learned_state(folder) for folder in folders]

    history, expected = searched(tmp_path / "whole")
    assert any(plan.parent is not None for plan in history[1])
    for killed_at in (2, 4, 5, 9):
        with pytest.raises(Killed):
            searched(tmp_path / "cut", killed_at)
    assert same(searched(tmp_path / "cut"), (history, expected))


LR = {"optim.lr": {"log": (0.01, 0.1)}}
ONE = {"scaling.workers": 1}


def refusal(parameters, recipe="quickstart", interval=1, **settings):
    space = Space(name="mine", description="", parameters=LR | parameters)
    return transfer_problem(space, recipe, ONE | settings, interval)


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
def test_settings_that_take_effect_at_the_next_step_can_be_searched(key, parameter):
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
        ("mi.schedule", {"choice": ("joint", "staged")}, "at different positions"),
        ("mi.estimator_epochs", {"integers": (1, 3)}, "at different positions"),
        ("model.width", {"uniform": (0.5, 1.0)}, "the network would differ"),
        ("data.val_fraction", {"uniform": (0.1, 0.5)}, "the images would differ"),
        ("attack.eps", {"uniform": (0.1, 0.2)}, "cannot be compared"),
        ("validation.steps", {"integers": (1, 9)}, "cannot be compared"),
        ("loss.base", {"choice": ("at", "trades")}, "a run would be of several methods"),
        ("optim.epochs", {"integers": (1, 9)}, "at different positions"),
        ("optim.batch_size", {"choice": (32, 64)}, "at different positions"),
        ("seed", {"integers": (0, 9)}, "seed cannot change within a run (it is fixed when a run"),
        ("scaling.compile", {"choice": (True, False)}, "it is fixed when a run begins"),
    ],
)
def test_other_settings_are_refused_with_the_remedy(key, parameter, words):
    message = refusal({key: parameter})
    assert message.startswith("PBT ")
    assert words in message
    assert ": set tune.search=tpe, or use a space without " in message
    assert "\n" not in message


def test_varying_estimators_are_refused():
    terms = {"choice": {"both": {}, "natural": {"mi.adversarial": False}}}
    message = refusal({"terms": terms})
    assert re.search(r"one of terms=(\w+) does not fit into a run of terms=(?!\1)", message)


def test_runs_that_cannot_be_compared_after_a_generation_are_refused():
    staged = refusal({}, recipe="paper-cifar10-linf")
    assert (
        "got pretraining, estimators, classifier (mi.schedule=staged): set mi.schedule=" in staged
    )
    assert refusal({}, **{"mi.schedule": "staged", "mi.estimators": "earlier"}) is None
    assert "needs trials of one worker, got scaling.workers=2: set scaling.workers=1" in refusal(
        {}, **{"scaling.workers": 2}
    )
    rare = refusal({}, interval=3, **{"validation.every": 2})
    assert "validation.every=2 does not validate then: set validation.every=1" in rare
    assert refusal({}, interval=4, **{"validation.every": 2}) is None


def test_every_space_has_a_verdict():
    verdicts = {
        name: transfer_problem(find_space(name).fitted("quickstart"), "quickstart", ONE, 1)
        for name in known_spaces()
    }
    assert "mi.bound cannot change" in verdicts["estimator_capacity"]
    assert "terms=" in verdicts["mi_weights"]
    assert "mi.hidden=" in verdicts["smoke"]
    assert "mi.form cannot change" in verdicts["teacher"]
    assert verdicts["mi_rates"] is None
    weights = find_space("mi_weights").fitted("quickstart-teacher")
    assert transfer_problem(weights, "quickstart-teacher", ONE, 1) is None


def test_a_checkpoint_of_another_size_does_not_fit(both):
    assert refusal({key: {"log": (0.01, 0.9)} for key in ("mi.balance", "mi.temperature")}) is None
    leader, follower = both
    wider = copy.deepcopy(FOLLOWER) | {"mi.hidden": TINY["mi.hidden"] * 2}
    transfer_checkpoint(leader, follower, 1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        trained(follower, wider, 2)
