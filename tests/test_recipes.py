"""Every recipe is a complete, valid configuration."""

from __future__ import annotations

import pytest

from raymi.config import Config
from raymi.errors import UserError
from raymi.overrides import flatten, leaves, resolved_lines, split_words
from raymi.recipes import RECIPES, build_config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_validates_and_round_trips(name: str) -> None:
    config = build_config(name)
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert build_config(name, split_words(resolved_lines(config)).settings) == config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_described_and_sets_only_keys_that_exist(name: str) -> None:
    recipe = RECIPES[name]
    assert len(recipe.description.split()) > 4
    assert set(flatten(recipe.settings)) <= {key for key, _ in leaves()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_overrides(name: str) -> None:
    settings = split_words(["seed=7", "mi.weight=2", "eps=0.09"]).settings
    config = build_config(name, settings)
    assert (config.seed, config.mi.weight, config.mi.balance) == (7, 2, None)
    assert config.attack.eps == 0.09


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    "word", ["mi.weight=0", "form=paper", "model.name=resnet18", "base=trades"]
)
def test_a_recipe_is_a_base_for_other_methods_and_models(name: str, word: str) -> None:
    parsed = split_words([word])
    config = build_config(name, parsed.settings)
    assert config.mi.enabled == (word != "mi.weight=0")


def test_the_quickstart_is_digits_on_two_workers() -> None:
    config = build_config("quickstart")
    assert (config.data.name, config.scaling.workers, config.mi.enabled) == ("digits", 2, True)


def test_an_unknown_recipe_gets_a_suggestion_together_with_what_else_is_wrong() -> None:
    with pytest.raises(UserError) as caught:
        build_config("quikstart", {"attack": {"eps": "8"}})
    first, second = str(caught.value).splitlines()
    assert first == "unknown recipe 'quikstart': did you mean quickstart?"
    assert "eps=8/255" in second


def test_a_recipe_like_no_other_is_answered_by_all_there_are() -> None:
    with pytest.raises(UserError, match=f"there are {', '.join(RECIPES)}"):
        build_config("zzzzzz")


def test_recipes_are_not_changed_by_overrides() -> None:
    before = build_config("quickstart")
    build_config("quickstart", {"attack": {"eps": 0.01}, "data": {"name": "mnist"}})
    assert build_config("quickstart") == before
