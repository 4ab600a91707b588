"""Parsing of command lines into a configuration, with one message for all problems."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import pytest

from raymi.config import Config
from raymi.errors import UserError
from raymi.fields import Listed, Section
from raymi.formatting import as_typed
from raymi.overrides import (
    default_text,
    examine,
    expected,
    flatten,
    leaves,
    nest,
    overlay,
    resolved_lines,
    split_words,
    validate,
)
from raymi.recipes import build_config


class Options(Section):
    """Options of a command."""

    recipe: Annotated[str, Listed("recipes", {"quickstart": "", "other": ""})] | None = None
    resume: str | None = None
    dry_run: bool = False


def from_words(*words: str) -> Config:
    parsed = split_words(words)
    return validate(parsed.settings, parsed.problems)


def complaint(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        from_words(*words)
    return str(caught.value)


@pytest.mark.parametrize(
    "section",
    [
        {"attack": {"objective": "kl", "start": "image"}},
        {"attack": {"steps": "0", "start": "gaussian"}},
        {"optim": {"batch_size": "2"}, "scaling": {"workers": "3"}},
        {"optim": {"batch_size": "1"}},
        {"loss": {"base": "trades"}, "attack": {"start": "image"}, "nme": "a"},
    ],
    ids=str,
)
def test_every_comparison_between_sections_is_reported_once(section: dict[str, Any]) -> None:
    config, problems = examine(section)
    assert isinstance(config, Config)
    assert 1 <= len(problems) <= 2
    assert len(set(problems)) == len(problems)


def test_unique_last_parts_are_keys() -> None:
    assert from_words("lr=1e-3").optim.lr == 1e-3
    assert from_words("optim.lr=1e-3").optim.lr == 1e-3
    assert from_words("--optim.lr=1e-3").optim.lr == 1e-3


def test_new_keys_do_not_share_a_short_name_of_others() -> None:
    count = Counter(key.rpartition(".")[2] for key, _ in leaves())
    shared = {"alpha", "depth", "every", "max_samples", "name", "objective", "schedule", "steps"}
    assert {name for name, num in count.items() if num > 1} <= shared


def test_a_whole_key_wins_over_last_parts() -> None:
    assert from_words("name=mine").name == "mine"


def test_fractions_powers_lists_and_none_are_parsed() -> None:
    config = from_words("eps=4/255", "milestones=0.5,3/4", "weight=2", "flip=no", "limit=none")
    assert config.attack.eps == 4 / 255
    assert config.optim.milestones == (0.5, 0.75)
    assert (config.mi.weight, config.mi.balance) == (2, None)
    assert config.data.flip is False
    assert config.data.limit is None


def test_a_value_may_contain_equals_signs() -> None:
    assert from_words("experiment=a=b c").tracking.experiment == "a=b c"


def test_one_message_lists_all_problems() -> None:
    text = complaint(
        "lrr=1", "lonely", "alpha=3", "seed=1", "seed=2", "norm=l1", "eps=-1", "epochs=0",
        "data.name=cifr10", "model.depth=3", "workers=x", "momentum=1/0", "flip=perhaps",
        "milestones=0.5,2", "smoothing=0", "mi.weight=1", "balance=1", "registered_name=a/b",
    )  # fmt: skip
    expected_lines = [
        "unknown key 'lrr': did you mean optim.lr",
        "expected key=value, got 'lonely'",
        "'alpha' is ambiguous: expected one of attack.alpha, evaluation.alpha",
        "seed is given 2 times, as 1, 2: keep one",
        "attack.norm: expected linf | l2, got 'l1': did you mean l2",
        "attack.eps: expected number >= 0, got '-1'",
        "optim.epochs: expected whole number >= 1, got '0'",
        "data.name: unknown data set 'cifr10': did you mean cifar10",
        "model: resnet18 has no depth 3: choose from 10, 18, 34",
        "scaling.workers: expected whole number >= 1, or a range such as 2..8, got 'x'",
        "optim.momentum: expected number >= 0 and < 1, got '1/0'",
        "data.flip: expected true | false, got 'perhaps'",
        "optim.milestones: expected comma-separated, each a number >= 0 and < 1, got '2'",
        "unknown key 'smoothing'",
        "mi: give either weight or balance, got weight=1 and balance=1",
        "tracking.registered_name: expected a plain name",
    ]
    assert [line for line in expected_lines if line not in text] == []
    assert len(text.splitlines()) == len(expected_lines)


def test_rules_between_sections_are_reported_with_invalid_values_elsewhere() -> None:
    text = complaint("workers=200", "eps=8")
    assert "optim.batch_size must be at least scaling.workers, got 128 for 200 workers" in text
    assert "did you mean eps=8/255?" in text


def test_rules_between_sections_are_not_applied_to_defaults() -> None:
    text = complaint("workers=200", "batch_size=many")
    assert text == "optim.batch_size: expected whole number >= 1, got 'many'"


def test_a_range_of_workers_is_checked_by_its_maximum_and_round_trips() -> None:
    text = complaint("workers=2..200")
    assert "optim.batch_size must be at least scaling.workers, got 128 for 2..200 workers" in text
    assert "expected a range from fewer to more, such as 1..2, got 2..1" in complaint(
        "workers=2..1"
    )
    assert "scaling.workers=1..4" in resolved_lines(from_words("workers=1..4"))
    assert (
        expected(dict(leaves())["scaling.workers"]) == "whole number >= 1, or a range such as 2..8"
    )


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("attack.esp=1", "attack.eps"),
        ("worker=1", "scaling.workers"),
        ("mi.wieght=1", "mi.weight"),
        ("batchsize=1", "optim.batch_size"),
        ("recipy=quickstart", "recipe"),
    ],
)
def test_a_typo_gets_a_suggestion(typo: str, meant: str) -> None:
    (problem,) = split_words([typo], Options).problems
    assert f"unknown key {typo.partition('=')[0]!r}: did you mean" in problem
    assert meant in problem.partition("did you mean")[2]


def test_an_unknown_key_of_a_section_gets_the_section_s_keys() -> None:
    (problem,) = split_words(["optim.learning_rate=1"]).problems
    assert problem.startswith(
        "unknown key 'optim.learning_rate': optim has name, epochs, batch_size, lr"
    )


def test_an_unknown_key_without_similar_ones_refers_to_help() -> None:
    assert split_words(["qqqqqq=1"]).problems == [
        "unknown key 'qqqqqq' (--help all lists every key)"
    ]


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("quickstart", "did you mean recipe=quickstart?"),
        ("lr", "write optim.lr=VALUE"),
        ("recipe", "write recipe=VALUE"),
    ],
)
def test_a_word_without_a_value_gets_a_remedy(word: str, remedy: str) -> None:
    (problem,) = split_words([word], Options).problems
    assert problem == f"expected key=value, got {word!r}: {remedy}"


def test_a_section_is_no_key() -> None:
    assert "unknown key 'attack'" in complaint("attack=3")
    assert "unknown key 'attack.'" in complaint("attack.=3")
    assert "unknown key ''" in complaint("=3")


def test_unknown_keys_of_a_tree_get_suggestions_too() -> None:
    with pytest.raises(UserError, match=r"unknown key 'optim\.lrr': did you mean optim\.lr"):
        validate({"optim": {"lrr": 1}})
    with pytest.raises(UserError, match="unknown key 'sed': did you mean seed"):
        validate({"sed": 1})


def test_options_of_the_command_are_separated_and_not_repeated() -> None:
    parsed = split_words(["recipe=a", "seed=3"], Options)
    assert (parsed.own, parsed.settings, parsed.problems) == ({"recipe": "a"}, {"seed": "3"}, [])
    assert split_words(["recipe=a", "recipe=b"], Options).problems == [
        "recipe is given 2 times, as a, b: keep one"
    ]


@pytest.mark.parametrize("words", [["--epochs", "2"], ["--epochs=2"], ["epochs=2"]])
def test_a_key_and_its_value_are_one_word_or_two(words: list[str]) -> None:
    for more in ([], ["--dry-run"], ["recipe=other"], ["--recipe", "other"]):
        for line in ([*words, *more], [*more, *words]):
            parsed = split_words(line, Options)
            assert (parsed.settings, parsed.problems) == ({"optim": {"epochs": "2"}}, [])
            assert parsed.own == ({} if not more else parsed.own)


@pytest.mark.parametrize("words", [["--batch-size", "9"], ["--batch_size", "9"]])
def test_a_dashed_key_may_have_dashes_inside(words: list[str]) -> None:
    assert split_words(words).settings == {"optim": {"batch_size": "9"}}


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--dry-run"], "true"), (["--dry-run", "false"], "false"), (["dry_run=true"], "true"),
     (["--dry-run", "true"], "true"), (["--dry-run=false"], "false")],
)  # fmt: skip
def test_a_flag_needs_no_value(words: list[str], value: str) -> None:
    parsed = split_words([*words, "seed=1"], Options)
    assert (parsed.own, parsed.problems) == ({"dry_run": value}, [])


@pytest.mark.parametrize("words", [["--recipe"], ["--recipe", "--dry-run"], ["recipe="]])
def test_an_option_needs_a_value(words: list[str]) -> None:
    assert split_words(words, Options).problems == ["recipe: expected a value: recipe=NAME"]


@pytest.mark.parametrize("words", [["--lr"], ["--lr", "seed=1"]])
def test_a_dashed_key_needs_a_value(words: list[str]) -> None:
    assert split_words(words).problems == ["optim.lr: expected a value: optim.lr=N"]


def test_an_unknown_dashed_key_and_its_value_are_one_problem() -> None:
    (problem,) = split_words(["--epoch", "2", "seed=1"]).problems
    assert problem.startswith("unknown key 'epoch': did you mean")
    (problem,) = split_words(["--dryrun"], Options).problems
    assert problem == "unknown key 'dryrun': did you mean --dry-run?"


def test_words_that_a_command_takes_as_they_are_stay_in_order() -> None:
    parsed = split_words(["b", "recipe=x", "a=1", "a"], Options, lambda word: word[0] in "ab")
    assert (parsed.others, parsed.own, parsed.problems) == (["b", "a=1", "a"], {"recipe": "x"}, [])


def test_short_and_whole_form_of_a_key_are_the_same_key() -> None:
    assert "optim.lr is given 2 times" in complaint("lr=1", "optim.lr=1")


def test_examine_returns_valid_sections_and_problems() -> None:
    config, problems = examine({"attack": {"eps": "x"}, "scaling": {"workers": 3}, "seed": 4})
    assert len(problems) == 1
    assert (config.scaling.workers, config.seed, config.attack.eps) == (3, 4, 8 / 255)


def test_nest_and_flatten_are_inverse() -> None:
    flat = {"a": 1, "b.c": 2, "b.d.e": (3,)}
    assert flatten(nest(flat)) == flat


def test_weight_and_balance_replace_each_other() -> None:
    base = {"mi": {"balance": 0.4}}
    assert validate(overlay(base, {"mi": {"weight": "2"}})).mi.balance is None
    fixed = {"mi": {"weight": 3.0}}
    over = validate(overlay(fixed, {"mi": {"balance": "0.1"}})).mi
    assert (over.weight, over.balance) == (None, 0.1)
    assert validate(overlay(fixed, {"mi": {"weight": "4"}})).mi.weight == 4
    with pytest.raises(UserError, match="either weight or balance"):
        validate(overlay(fixed, {"mi": {"weight": "1", "balance": "0.1"}}))


def test_another_form_drops_form_keys_and_keeps_capacity() -> None:
    capacity = {"hidden": 128, "base_width": 16, "depth": 1, "estimator_lr": 0.01}
    of_form = {"balance": 0.4, "difference": 0.7, "adversarial": False, "samples": "selected"}
    base = {"mi": {**capacity, **of_form, "schedule": "staged"}}
    mi = validate(overlay(base, {"mi": {"form": "paper"}})).mi
    assert (mi.hidden, mi.base_width, mi.depth, mi.estimator_lr) == (128, 16, 1, 0.01)
    assert (mi.weight, mi.balance, mi.difference) == (5.0, None, 0.1)
    assert (mi.adversarial, mi.samples, mi.schedule) == (True, "selected", "staged")
    assert validate(overlay(base, {"mi": {"form": "wmim"}})).mi.samples == "all"
    kept = validate(overlay(base, {"mi": {"form": "paper", "hidden": "256"}})).mi
    assert kept.hidden == 256


def test_a_form_s_capacity_applies_without_a_recipe_s() -> None:
    assert validate(overlay({}, {"mi": {"form": "paper"}})).mi.hidden == 2048


def test_another_base_loss_drops_weight_and_smoothing() -> None:
    at = {"loss": {"label_smoothing": 0.1, "batchnorm": "mix"}}
    assert overlay(at, {"loss": {"base": "trades"}})["loss"] == {
        "base": "trades",
        "batchnorm": "mix",
    }
    assert overlay(at, {"loss": {"base": "at"}})["loss"]["label_smoothing"] == 0.1
    trades = {"loss": {"base": "trades", "beta": 6.0}}
    assert validate(overlay(trades, {"loss": {"base": "mart"}})).loss.beta == 5


def test_repeating_the_form_changes_nothing() -> None:
    base = {"mi": {"hidden": 128}}
    assert overlay(base, {"mi": {"form": "bounded"}})["mi"]["hidden"] == 128
    paper = {"mi": {"form": "paper", "hidden": 128}}
    assert overlay(paper, {"mi": {"form": "paper"}})["mi"]["hidden"] == 128
    fixed = {"mi": {"form": "paper", "weight": 3.0}}
    assert overlay(fixed, {"mi": {"form": "paper"}})["mi"]["weight"] == 3
    assert "weight" not in overlay(fixed, {"mi": {"form": "bounded"}})["mi"]


def test_another_model_drops_the_recipe_s_depth_and_width() -> None:
    base = {"model": {"name": "small-cnn", "depth": 4, "width": 2}}
    assert overlay(base, {"model": {"name": "vgg19"}})["model"] == {"name": "vgg19"}
    assert overlay(base, {"model": {"width": "1"}})["model"] == {
        "name": "small-cnn",
        "depth": 4,
        "width": "1",
    }


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["mi.weight=2"],
        ["form=paper"],
        ["base=mart"],
        ["eps=0.1", "attack.alpha=0.30000000000000004e-1", "milestones=()"],
        ["norm=l2", "eps=128/255", "lr=0.012345678901234567", "limit=100", "out=~/x y"],
        ["model.name=my.net:build", "experiment=two words", "name=mine"],
    ],
)
def test_resolved_words_rebuild_the_configuration_on_any_recipe(words: list[str]) -> None:
    parsed = split_words(words)
    config = build_config("quickstart", parsed.settings)
    again = split_words(resolved_lines(config))
    assert again.problems == []
    for recipe in ("quickstart", "cifar10-cpu"):
        assert build_config(recipe, again.settings) == config


def test_resolved_words_name_every_key_once() -> None:
    keys = [line.partition("=")[0] for line in resolved_lines(Config())]
    assert keys == [key for key, _ in leaves()]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"), (0.1, "0.1"), (0.2, "0.2"), (1e-3, "0.001"), (1000.0, "1000"),
        (0.1 + 0.2, "0.30000000000000004"), (None, "none"), (True, "true"), ((), "()"),
        ((0.75, 0.9), "0.75,0.9"), (0.0, "0"), (7, "7"),
    ],
)  # fmt: skip
def test_values_are_shown_as_they_would_be_typed(value: object, text: str) -> None:
    assert as_typed(value) == text


def test_expected_describes_each_kind_of_key() -> None:
    fields = dict(leaves())
    accepts = {
        "attack.norm": "linf | l2",
        "attack.eps": "number >= 0",
        "attack.alpha": "number > 0 | none",
        "attack.objective": "ce | kl | none",
        "optim.momentum": "number >= 0 and < 1",
        "optim.epochs": "whole number >= 1",
        "data.image_size": "whole number >= 8 | none",
        "mi.depth": "whole number >= 1 and <= 5",
        "data.flip": "true | false",
        "scaling.use_gpu": "auto | true | false",
        "tracking.experiment": "text",
        "name": "text | none",
    }
    assert {key: expected(fields[key]) for key in accepts} == accepts
    assert default_text(fields["attack.eps"]) == "8/255"
