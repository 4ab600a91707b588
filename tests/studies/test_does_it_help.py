"""The study on mutual information: its statistics, and a unit from training to result."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import t

from studies.does_it_help import setting, unit
from studies.does_it_help.command import run_units, write_summary
from studies.does_it_help.setting import ARMS, REFERENCE, STAGES, Stage, Unit, units
from studies.does_it_help.summary import differences, summary
from studies.does_it_help.unit import measure, result_file

TINY = Stage(
    (
        "recipe=quickstart-at", "data.limit=240", "attack.steps=1", "model.width=0.25",
        "validation.steps=1", "validation.max_samples=40", "optim.batch_size=32",
    ),
    4, (2, 4), (0,),
)  # fmt: skip


def test_intervals_of_two_arms_equal_the_paired_t_test():
    first, second = [48.0, 49.5, 47.0, 50.5], [48.6, 49.9, 48.0, 50.4]
    gaps = np.subtract(second, first)
    found = differences({REFERENCE: first, "js": second})["js"]
    assert found.mean == pytest.approx(gaps.mean())
    error = gaps.std(ddof=1) / math.sqrt(4)
    assert found.half == pytest.approx(t.ppf(0.975, 3) * error)


def test_seeds_that_shift_all_arms_alike_do_not_widen_the_intervals():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(4, 3))
    values = dict(zip((REFERENCE, "js", "ikl", "trades"), noise, strict=True))
    shifted = {arm: np.add(row, [10, -20, 30]) for arm, row in values.items()}
    for arm, found in differences(values).items():
        assert found == pytest.approx(differences(shifted)[arm])


def test_false_decisions_of_equal_arms_are_at_most_five_percent_of_studies():
    generator = np.random.default_rng(1)
    decided = [
        any(
            one.decided
            for one in differences(
                dict(zip(ARMS, generator.normal(size=(len(ARMS), 3)), strict=True))
            ).values()
        )
        for _ in range(400)
    ]
    assert 0.01 < np.mean(decided) < 0.07


def test_one_seed_decides_nothing():
    assert not differences({REFERENCE: [1.0], "js": [90.0]})["js"].decided


def test_arms_differ_in_the_method_alone():
    common = {word.split("=")[0] for word in setting.AVERAGED}
    allowed = common | {"recipe", "loss.label_smoothing"}
    for words in ARMS.values():
        keys = {word.split("=")[0] for word in words}
        assert {key for key in keys if not key.startswith("mi.")} <= allowed
    assert [one.seed for one in units("1")[: len(ARMS)]] == [0] * len(ARMS)
    assert STAGES["1"].epochs in STAGES["1"].candidates


def test_a_unit_is_measured_once_and_summarised(tmp_path, monkeypatch):
    monkeypatch.setitem(STAGES, "tiny", TINY)
    monkeypatch.setattr(unit, "VALIDATION_IMAGES", 30)
    monkeypatch.setattr(unit, "TEST_IMAGES", 40)
    monkeypatch.setattr(unit, "AUTOATTACK_IMAGES", 4)
    one = Unit("tiny", REFERENCE, 0)
    result = measure(one, tmp_path, tmp_path)
    assert json.loads(result_file(tmp_path, one).read_text())["arm"] == REFERENCE
    assert set(result["validation"]) == {2, 4}
    assert set(result["test"]) == {"chosen", "last", "autoattack"}
    assert result["test"]["last"]["epoch"] == 4
    assert result["test"]["last"]["fast"] <= result["test"]["last"]["clean"]
    journal = (tmp_path / "runs" / one.name / "journal.jsonl").read_bytes()
    again = measure(one, tmp_path, tmp_path)  # as after a kill before the result was written
    assert (again["test"], again["validation"]) == (result["test"], result["validation"])
    assert (tmp_path / "runs" / one.name / "journal.jsonl").read_bytes() == journal
    assert "no arm has the seeds" in write_summary("tiny", tmp_path)
    other = {**result, "arm": "js"}
    assert "| js |" in summary([result, other]).replace("  ", " ")


def test_a_failed_unit_ends_the_study_with_the_place_of_its_log(tmp_path, capsys):
    assert run_units([Unit("1", "no-such-arm", 0)], tmp_path, tmp_path, 1) == 1
    said = capsys.readouterr().out
    assert "stage1-no-such-arm-seed0 ended with 1: " in said
    assert "KeyError" in (tmp_path / "logs" / "stage1-no-such-arm-seed0.log").read_text()
