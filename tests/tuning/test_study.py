"""A search goes on after any end as it would have without it, and finds what it should."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import optuna
import pytest

from raymi.errors import StorageError, UserError
from raymi.tuning.space import Space
from raymi.tuning.study import Halving, Study


def space(**parameters):
    given = parameters or {
        "mi.balance": {"log": (0.01, 1.0)},
        "mi.depth": {"integers": (1, 3)},
        "terms": {"choice": {"both": {}, "natural": {"mi.adversarial": False}}},
    }
    return Space(name="test", description="", parameters=given)


def quality(values):
    """Best where the balance is 0.2, both terms are there and the encoder is deep."""
    far = abs(math.log(values["mi.balance"] / 0.2))
    return 1 - 0.1 * far + 0.05 * values["mi.depth"] - 0.2 * (values["terms"] == "natural")


def in_file(path: Path) -> optuna.Study:
    """Optuna's own view of the search in a file."""
    storage = f"sqlite:///{path}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def search(path: Path, num: int, processes: int = 1, **how) -> list:
    """All trials, each evaluated at once, by processes that end one after the other."""
    for process in range(processes):
        study = Study(path, space(), **how)
        while len(study) < num * (process + 1) // processes:
            trial = study.ask()
            study.finish(trial.number, [quality(trial.values)])
    return list(study)


@pytest.mark.parametrize("method", ["tpe", pytest.param("random", marks=pytest.mark.exhaustive)])
def test_a_search_that_was_cut_off_draws_what_it_would_have(method, tmp_path):
    whole = search(tmp_path / "whole.db", 16, method=method, seed=3)
    cut = search(tmp_path / "cut.db", 16, processes=4, method=method, seed=3)
    assert cut == whole
    assert len({trial.values["mi.balance"] for trial in whole}) == 16, "each draws anew"
    other = search(tmp_path / "other.db", 16, method=method, seed=4)
    assert [trial.values for trial in other] != [trial.values for trial in whole]


def test_trials_that_had_begun_are_there_with_what_they_drew(tmp_path):
    study = Study(tmp_path / "study.db", space())
    done, begun = study.ask(), study.ask()
    study.finish(done.number, [0.5])
    study.report(begun.number, 1, 0.25)
    again = Study(tmp_path / "study.db", space())
    (found,) = again.unfinished()
    assert (found.number, found.values, found.reported) == (1, begun.values, {1: 0.25})
    again.report(1, 1, 0.75)
    again.report(1, 2, 0.5)
    assert again[1].reported == {1: 0.25, 2: 0.5}, "an epoch that is repeated keeps its value"
    again.finish(1, [0.5])
    assert again.unfinished() == []
    assert len(again) == 2


def test_a_trial_that_was_cut_off_while_it_drew_draws_the_rest(tmp_path):
    Study(tmp_path / "study.db", space(), method="random")
    half = in_file(tmp_path / "study.db").ask()
    balance = half.suggest_float("mi.balance", 0.01, 1.0, log=True)
    (found,) = Study(tmp_path / "study.db", space(), method="random").unfinished()
    assert found.values["mi.balance"] == balance
    assert set(found.values) == {"mi.balance", "mi.depth", "terms"}


def test_a_grid_has_every_combination_once_also_over_several_processes(tmp_path):
    grid = list(space().grid())
    for process in range(3):
        study = Study(tmp_path / "study.db", space(), method="grid")
        assert study.most == len(grid) == 18
        while len(study) < 6 * (process + 1):
            trial = study.ask()
            study.finish(trial.number, [quality(trial.values)])
    assert [trial.values for trial in study] == grid
    with pytest.raises(IndexError):
        study.ask()
    # Between the line that names a trial's values and the one that begins it.
    cut = Study(tmp_path / "cut.db", space(), method="grid")
    in_file(tmp_path / "cut.db").enqueue_trial(grid[0])
    assert Study(tmp_path / "cut.db", space(), method="grid").ask().values == grid[0]
    assert len(cut) == 1


def test_trials_that_are_behind_are_stopped(tmp_path):
    study = Study(tmp_path / "study.db", space(), method="random", halving=Halving(1, 3))
    ends = {}
    for trial in [study.ask() for _ in range(12)]:
        for epoch in range(1, 10):
            if study.report(trial.number, epoch, quality(trial.values)):
                study.stop(trial.number)
                ends[trial.number] = epoch
                break
        else:
            study.finish(trial.number, [quality(trial.values)])
    assert 4 <= len(ends) <= 10
    assert set(ends.values()) <= {1, 3}, "at the rungs"
    finished = [trial for trial in study if trial.state == "finished"]
    best = max(study, key=lambda trial: quality(trial.values))
    assert best.number in {trial.number for trial in finished}
    assert {trial.number for trial in study if trial.state == "stopped"} == set(ends)
    later = Study(tmp_path / "study.db", space(), method="random", halving=Halving(1, 3))
    worse = later.ask()
    assert later.report(worse.number, 1, -5.0), "what is known of earlier trials counts"


def test_a_failure_is_kept_with_its_reason_and_does_not_end_the_search(tmp_path):
    study = Study(tmp_path / "study.db", space())
    study.fail(study.ask().number, "loss_adv is not finite")
    study.finish(study.ask().number, [0.5])
    failed, finished = Study(tmp_path / "study.db", space())
    assert (failed.state, failed.reason) == ("failed", "loss_adv is not finite")
    assert (finished.state, finished.objectives) == ("finished", (0.5,))
    assert [trial.number for trial in study.front()] == [1]


def test_a_file_belongs_to_one_search(tmp_path):
    Study(tmp_path / "study.db", space())
    for other in ({"method": "random"}, {"seed": 1}, {"objectives": ("clean", "robust")}):
        with pytest.raises(UserError, match="is the state of another search"):
            Study(tmp_path / "study.db", space(), **other)
    smaller = space(**{"mi.balance": {"log": (0.1, 1.0)}})
    with pytest.raises(UserError, match=r"another search \(space\)"):
        Study(tmp_path / "study.db", smaller)
    with pytest.raises(UserError, match="its folder must be there"):
        Study(tmp_path / "nowhere" / "study.db", space())


def test_what_is_no_number_is_a_failure(tmp_path):
    study = Study(tmp_path / "study.db", space())
    study.finish(study.ask().number, [float("nan")])
    study.fail(0, "once more")
    (trial,) = study
    assert (trial.state, trial.reason) == ("failed", "it came to nan")
    with pytest.raises(ValueError, match="expected"):
        study.finish(study.ask().number, [0.1, 0.2])


def test_of_two_objectives_the_front_is_what_no_trial_beats(tmp_path):
    study = Study(tmp_path / "study.db", space(), objectives=("clean", "robust"))
    assert study.front() == []
    for values in ((0.9, 0.3), (0.8, 0.5), (0.7, 0.4), (0.95, 0.1)):
        study.finish(study.ask().number, values)
    assert sorted(trial.number for trial in study.front()) == [0, 1, 3]
    with pytest.raises(UserError, match="by one objective only, got clean, robust"):
        Study(tmp_path / "other.db", space(), objectives=("clean", "robust"), halving=Halving())


def test_what_matters_is_said(tmp_path):
    study = Study(tmp_path / "study.db", space(), method="random")
    assert study.importance() == {}
    for _ in range(40):
        trial = study.ask()
        study.finish(trial.number, [quality(trial.values)])
    importance = study.importance()
    assert sum(importance.values()) == pytest.approx(1)
    assert min(importance, key=importance.get) == "mi.depth"


@pytest.mark.exhaustive
def test_tpe_looks_where_it_was_good(tmp_path):
    late = [
        quality(trial.values)
        for seed in range(3)
        for trial in search(tmp_path / f"{seed}.db", 30, method="tpe", seed=seed)[20:]
    ]
    anywhere = [quality(space().random(seed)) for seed in range(300)]
    assert sum(late) / len(late) > sum(anywhere) / len(anywhere) + 0.05


def test_a_path_with_odd_characters_is_that_of_the_file(tmp_path):
    folder = tmp_path / "50%20?b #c"
    folder.mkdir()
    study = Study(folder / "study.db", space())
    study.ask()
    assert (folder / "study.db").is_file()
    assert len(Study(folder / "study.db", space())) == 1


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    study = Study(tmp_path / "study.db", space())
    trial = study.ask()
    other = sqlite3.connect(tmp_path / "study.db", timeout=0)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StorageError, match=r"cannot write .*study\.db \(.*locked"):
            study.finish(trial.number, [0.5])
    finally:
        other.close()
    study.finish(trial.number, [0.5])
    assert study[trial.number].objectives == (0.5,)
