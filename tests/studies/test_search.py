"""Study of TPE with ASHA against random search: curves, budget and results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY

from raymi.errors import UserError
from raymi.tuning.space import Space
from raymi.tuning.sweep_folder import Measurement
from studies.search import measure as study
from studies.search.curves import Comparison, Found, best_so_far, compare, median_share
from studies.search.measure import measure
from studies.search.one_search import Trained, search
from studies.search.setting import RANDOM, SETTING, TPE, Setting

SPACE = Space(name="lr", description="", parameters={"optim.lr": {"log": (0.01, 0.1)}})
SETTINGS = {k: v for k, v in TINY.items() if k != "optim.lr"} | {"optim.epochs": 3}


def trained(*robust: float, ended: str = "finished") -> Trained:
    return Trained({}, len(robust) + (ended == "failed"), ended, robust)


def test_configuration_counts_when_its_trial_ends() -> None:
    trials = [
        trained(0.1, 0.5),
        trained(0.9, ended="stopped"),
        trained(ended="failed"),
        trained(0.2, 0.4),
        trained(0.3, 0.6),
        trained(0.6, 0.6),
        trained(0.7, ended="cut"),
    ]
    assert best_so_far(trials) == [Found(0.5, 2), Found(0.6, 8)]
    assert best_so_far(trials[1:3]) == []


def test_as_good_is_the_first_time_at_or_above_the_best_of_the_reference() -> None:
    reference = [trained(0.1, 0.5), trained(0.1, 0.6), trained(0.1, 0.3), trained(0.1, 0.6)]
    other = [trained(0.2, ended="stopped"), trained(0.2, 0.6), trained(0.2, 0.7)]
    expected = Comparison(Found(0.6, 4), Found(0.7, 5), as_good=3, share=3 / 8)
    assert compare(reference, other, budget=8) == expected
    assert compare(other, reference, budget=8).as_good is None
    assert compare(other, reference, budget=8).share is None
    nothing = [trained(0.2, ended="stopped")]
    assert compare(reference, nothing, budget=8) == Comparison(Found(0.6, 4), None, None, None)
    assert compare(nothing, other, budget=8).as_good == 3


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.5, 0.1, 0.3], 0.3),
        ([None, 0.1, 0.3], 0.3),
        ([None, 0.1, None], None),
        ([0.2, 0.4], pytest.approx(0.3)),
    ],
)
def test_median_counts_never_as_the_latest(
    shares: list[float | None], expected: float | None
) -> None:
    compared = [Comparison(None, None, None, share) for share in shares]
    assert median_share(compared) == expected


def test_searches_of_one_seed_draw_independently_and_train_with_one_seed() -> None:
    one, other = (SETTING.definition(search, seed=3) for search in (RANDOM, TPE))
    assert one.seeds != other.seeds
    assert one.space == other.space
    assert one.settings == other.settings
    assert SETTING.budget == 16 * 9
    assert SETTING.space.incompatible(SETTING.recipe) is None


def searched(search_name: str, budget: int, lr: tuple[float, float]) -> list[tuple[str, int]]:
    space = Space(name="lr", description="", parameters={"optim.lr": {"log": lr}})
    setting = Setting(space=space, recipe="quickstart", settings=SETTINGS, trials=1)
    trials = search(setting.definition(search_name, seed=0), budget, 0, torch.device("cpu"))
    return [(trial.ended, trial.epochs) for trial in trials]


def test_a_search_ends_with_its_budget_and_failures_cost_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert searched(RANDOM, 4, (0.01, 0.1)) == [("finished", 3), ("cut", 1)]
    assert searched(RANDOM, 1, (1e29, 1e30)) == [("failed", 1)]
    falling = iter((0.3, 0.3, 0.3, 0.2, 0.1))
    measured = Measurement.of_epoch
    monkeypatch.setattr(
        Measurement, "of_epoch", lambda *of: measured(*of)._replace(robust=next(falling))
    )
    assert searched(TPE, 5, (0.01, 0.1)) == [("finished", 3), ("stopped", 1), ("stopped", 1)]


@pytest.mark.exhaustive
def test_both_searches_spend_the_budget_and_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(space=SPACE, recipe="quickstart", settings=SETTINGS, trials=2)
    report = measure(setting, [7], tmp_path, "the command")
    content = json.loads((tmp_path / "search.json").read_text())
    random, tpe = (content["searches"]["7"][search]["trials"] for search in (RANDOM, TPE))
    assert [trial["ended"] for trial in random] == ["finished", "finished"]
    assert sum(trial["epochs"] for trial in tpe) == setting.budget == 6
    assert tpe[0]["ended"] == "finished"
    assert all(trial["robust"] == sorted(trial["robust"]) for trial in (*random, *tpe))
    assert content["seeds"]["7"]["reference"]["robust"] == max(t["robust"][-1] for t in random)
    share = content["seeds"]["7"]["share"]
    assert content["median_share"] == content["pairs"]["median_share"] == share
    assert content["pairs"]["num"] == 1
    assert "| 7 | " in report
    assert "`the command`" in report

    monkeypatch.setattr(study, "_search", None)  # nothing left to measure
    assert measure(setting, [7], tmp_path, "the command") == report
    with pytest.raises(UserError, match="with other values of setting, which are not mixed"):
        measure(setting.model_copy(update={"trials": 3}), [7], tmp_path, "the command")


def test_wrong_word_is_reported_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["somewhere", "optim.lr=0.1", "seeds=x"]) == 2
    printed = capsys.readouterr().err
    assert "expected OUT and seeds, got optim.lr: the settings are fixed" in printed
    assert "seeds: expected 0..9 or 0,1,2, got 'x'" in printed
