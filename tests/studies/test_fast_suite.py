"""Study of the fast suite: accuracies and times from the reports of evaluations."""

from __future__ import annotations

import json

import pytest

from raymi.attacks.suites import SUITES
from raymi.config import Config
from raymi.overrides import split_words, validate
from raymi.recipes import on_recipe
from studies.fast_suite import measure


def result(name, accuracy, *seconds):
    return {"name": name, "accuracy": accuracy, "attacks": [{"seconds": s} for s in seconds]}


def test_the_time_of_a_suite_includes_all_its_attacks(tmp_path):
    report = {
        "results": [
            result("clean", 0.9, 0.1),
            result("autoattack", 0.4, 1.0, 9.0, 10.0),
            result("fast", 0.405, 1.0, 4.0),
        ]
    }
    pair = measure.pair_of(report)
    assert pair.points == pytest.approx(0.5)
    assert pair.time == pytest.approx(0.25)
    measure.write(tmp_path, {"net-0": pair._replace(fast=0.404)})
    assert (
        "| net-0 | 90.0% | 40.4% | 40.0% | +0.40 points | 0.25 |"
        in (tmp_path / "fast_suite.md").read_text()
    )
    assert "the time or less: met" in (tmp_path / "fast_suite.md").read_text()
    saved = json.loads((tmp_path / "fast_suite.json").read_text())["results"]["net-0"]
    assert saved["time"] == pytest.approx(0.25)
    measure.write(tmp_path, {"net-0": pair._replace(fast=0.406)})
    assert "the time or less: not met" in (tmp_path / "fast_suite.md").read_text()


@pytest.mark.parametrize("name", measure.CLASSIFIERS)
def test_settings_of_the_classifiers_are_valid(name):
    assert SUITES["fast"] == (measure.SUITES[0],)
    recipe, *words = measure.CLASSIFIERS[name]
    parsed = split_words(words)
    assert not parsed.problems
    tree, _ = on_recipe(recipe.removeprefix("recipe="), parsed.settings)
    assert isinstance(validate(tree), Config)
