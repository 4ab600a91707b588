"""`raymi.tune`: what is asked for, before anything trains."""

from __future__ import annotations

import pytest

from raymi import tune
from raymi.commands.tune.options import asked_for


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
        ([], "space=NAME is needed: "),
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
        (["space=smoke", "tune.search=pbt"], "PBT hands on checkpoints, and one of mi.hidden="),
        (["space=mi_rates", "tune.search=pbt", "tune.trials=1"], "needs tune.trials of at least 2"),
        (["space=mi_rates", "tune.search=pbt", "seeds=0..1"], "tune.search=pbt has one seed"),
        (
            ["space=mi_rates", "tune.search=pbt", "epochs=2", "tune.interval=2"],
            "got tune.interval=2 for optim.epochs=2",
        ),
        (
            ["space=mi_full", "tune.search=grid"],
            "has more than 1000 combinations: give tune.trials",
        ),
        (["resume=gone"], "no sweep 'gone' in"),
        (["resume=gone", "lr=0.1"], "optim.lr cannot change when a sweep is continued"),
        (["smoke"], "expected key=value, got 'smoke': did you mean space=smoke?"),
    ],
)
def test_what_is_wrong_is_said_at_once(words, message, here, capsys):
    assert message in refused(capsys, *words)
    assert not list(here.iterdir()), "nothing was made"


def test_everything_wrong_is_said_together(capsys):
    said = refused(capsys, "space=smoke", "tune.factor=x", "lr=-1", "mi.balance=0.1")
    for part in ("tune.factor", "optim.lr", "mi.balance cannot be set"):
        assert part in said


def test_a_grid_is_searched_whole_unless_a_part_of_it_is_asked_for(here):
    (here / "two.toml").write_text(
        'description = "two"\n[parameters."optim.lr"]\nchoice = [0.1, 0.2]\n'
    )
    words = ["space=two.toml", "recipe=quickstart-at", "tune.search=grid", "tune.samples=none"]
    assert asked_for([*words, "name=whole"]).num_trials == 2
    part = asked_for([*words, "name=part", "tune.trials=1"])
    assert part.num_trials == 1
    assert part.definition.tune.samples is None


def test_what_a_space_says_of_the_search_holds_where_the_command_does_not(here):
    smoke = asked_for(["space=smoke", "name=a"]).definition.tune
    assert (smoke.trials, smoke.finalists, smoke.samples) == (8, 1, 40)
    assert asked_for(["space=smoke", "name=b", "tune.trials=3"]).definition.tune.trials == 3


def test_help_names_spaces_recipes_and_how_it_searches(capsys):
    assert tune.main(["--help"]) == 0
    out, _ = capsys.readouterr()
    for word in ("smoke", "mi_weights", "quickstart", "tune.scheduler", "optim.lr", "resume=SWEEP"):
        assert word in out
