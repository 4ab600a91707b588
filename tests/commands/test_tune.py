"""Command line of `raymi.tune`, checked before any training."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymi import tune
from raymi.commands.tune.options import open_sweep
from raymi.errors import UserError


def refused(capsys, *words):
    assert tune.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return err


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "space=NAME is missing: "),
        (["space=smok"], "no search space 'smok': did you mean smoke?"),
        (["space=smoke", "recipe=quikstart"], "unknown recipe 'quikstart': did you mean quick"),
        (["space=smoke", "recipe=quickstart-at"], "the space smoke does not fit: the recipe"),
        (["space=smoke", "mi.hidden=64"], "mi.hidden cannot be set: the space smoke varies it"),
        (["space=smoke", "tune.trials=0"], "tune.trials: expected whole number >= 1, got '0'"),
        (["space=smoke", "tune.serch=tpe"], "unknown key 'tune.serch': did you mean tune.search"),
        (["space=smoke", "scaling.workers=1..2"], "scaling.workers must be a number, got 1..2"),
        (["space=smoke", "scaling.workers=64"], "needs 64 CPUs, this machine has"),
        (["space=smoke", "seeds=2..0"], "seeds: expected the smaller one first, got '2..0'"),
        (["space=smoke", "seeds=0..1", "seed=3"], "give either seed or seeds"),
        (["space=smoke", "lr=fast"], "optim.lr: expected number > 0, got 'fast'"),
        (["space=smoke", "seeds=0..99999999"], "seeds: expected at most 10000 seeds"),
        (["space=smoke", "name=../x"], "name: expected"),
        (["space=smoke", "tune.search=pbt"], "PBT transfers checkpoints, but one of mi.hidden="),
        (["space=mi_rates", "tune.search=pbt", "tune.trials=1"], "needs tune.trials >= 2"),
        (["space=mi_rates", "tune.search=pbt", "seeds=0..1"], "tune.search=pbt needs one seed"),
        (
            ["space=mi_rates", "tune.search=pbt", "epochs=2", "tune.interval=2"],
            "got tune.interval=2 for optim.epochs=2",
        ),
        (
            ["space=mi_full", "tune.search=grid"],
            "has more than 1000 combinations: give tune.trials",
        ),
        (["resume=gone"], "no sweep 'gone' in"),
        (["resume=gone", "lr=0.1"], "optim.lr cannot change when a sweep is resumed"),
        (["smoke"], "expected key=value, got 'smoke': did you mean space=smoke?"),
    ],
)
def test_invalid_words_are_refused_before_any_work(words, message, here, capsys):
    assert message in refused(capsys, *words)
    assert not list(here.iterdir()), "nothing was created"


def test_all_problems_are_reported_together(capsys):
    message = refused(capsys, "space=smoke", "tune.factor=x", "lr=-1", "mi.balance=0.1")
    for part in ("tune.factor", "optim.lr", "mi.balance cannot be set"):
        assert part in message


def test_a_grid_is_complete_unless_trials_are_set(here):
    (here / "two.toml").write_text(
        'description = "two"\n[parameters."optim.lr"]\nchoice = [0.1, 0.2]\n'
    )
    words = ["space=two.toml", "recipe=quickstart-at", "tune.search=grid", "tune.samples=none"]
    assert open_sweep([*words, "name=whole"]).num_trials == 2
    part = open_sweep([*words, "name=part", "tune.trials=1"])
    assert part.num_trials == 1
    assert part.definition.tune.samples is None


def test_search_settings_of_the_space_are_defaults(here):
    smoke = open_sweep(["space=smoke", "name=a"]).definition.tune
    assert (smoke.trials, smoke.finalists, smoke.samples) == (8, 1, 40)
    assert open_sweep(["space=smoke", "name=b", "tune.trials=3"]).definition.tune.trials == 3


def test_a_recipe_file_becomes_a_named_recipe_and_settings(here):
    Path("mine.toml").write_text('recipe = "quickstart"\n[optim]\nepochs = 2\nlr = 0.3')
    made = open_sweep(["space=smoke", "name=f", "recipe=mine.toml", "optim.lr=0.2"]).definition
    assert made.recipe == "quickstart"
    assert made.settings == {"scaling.workers": "1", "optim.epochs": 2, "optim.lr": "0.2"}
    with pytest.raises(UserError, match=r"no recipe file .*gone.toml"):
        open_sweep(["space=smoke", "recipe=gone.toml"])


def test_help_lists_spaces_recipes_and_search_settings(capsys):
    assert tune.main(["--help", "all"]) == 0
    out, _ = capsys.readouterr()
    for word in ("smoke", "mi_weights", "quickstart", "tune.scheduler", "optim.lr", "resume=NAME"):
        assert word in out
