"""Every recipe, with and without a variant, is a complete, valid configuration."""

from __future__ import annotations

import re
from typing import Any

import pytest

from raymi.config import Config
from raymi.engine.phases import phases_of
from raymi.errors import UserError
from raymi.losses.registry import loss_titles, losses
from raymi.mi.forms.registry import forms
from raymi.mi.settings import MIConfig
from raymi.overrides import flatten, leaves, overlay, resolved_lines, split_words
from raymi.recipes import (
    BASE_RECIPES,
    RECIPES,
    VARIANTS,
    build_config,
    named_recipe,
    on_recipe,
)

CLOSED_FORMS = [name for name, term in forms().items() if term.closed_form]
PAPER = [name for name in BASE_RECIPES if name.startswith("paper-")]


def test_every_recipe_states_hardware_time_and_accuracy() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.hardware in ("a GPU", "2 CPU cores"), name
        assert recipe.time
        assert recipe.accuracy == "not measured" or recipe.accuracy.startswith("clean "), name
    assert {RECIPES[name].accuracy for name in PAPER} == {"not measured"}
    assert "70.5 ± 0.5 %" in RECIPES["quickstart-at-clean-forward"].accuracy


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_validates_and_round_trips(name: str) -> None:
    config = build_config(name)
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert build_config(name, split_words(resolved_lines(config)).settings) == config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_described_and_sets_only_keys_that_exist(name: str) -> None:
    recipe = RECIPES[name]
    assert len(recipe.description.split()) > 3
    assert set(flatten(recipe.settings)) <= {key for key, _ in leaves()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_overrides(name: str) -> None:
    settings = split_words(["seed=7", "mi.weight=2", "eps=0.09"]).settings
    config = build_config(name, settings)
    assert (config.seed, config.mi.weight, config.mi.balance) == (7, 2, None)
    assert config.attack.eps == 0.09


@pytest.mark.parametrize("name", BASE_RECIPES)
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


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_recipes_have_the_paper_s_settings(name: str) -> None:
    config = build_config(name)
    optim, mi = config.optim, config.mi
    assert (optim.lr, optim.momentum, optim.nesterov, optim.weight_decay) == (0.1, 0.9, False, 2e-4)
    assert (optim.batch_size, optim.epochs, optim.schedule) == (1024, 100, "multistep")
    assert [share * optim.epochs for share in optim.milestones] == [75, 90]
    assert (optim.ema, optim.awp) == (0, 0)
    assert (mi.form, mi.weight, mi.balance, mi.difference) == ("paper", 5, None, 0.1)
    assert (mi.hidden, mi.bound, mi.objective, mi.samples) == (2048, "dv", "contrast", "selected")
    assert [phase.name for phase in phases_of(config)] == [
        "pretraining",
        "estimators",
        "classifier",
    ]
    *_, last = name.split("-")
    net = last if last == "vgg19" else "resnet18"
    assert (config.model.name, config.model.width, config.loss.base) == (net, None, "at")
    assert (config.data.crop_padding, config.data.flip) == (4, True)
    _, data, norm = name.replace("-vgg19", "-linf").split("-")
    assert config.data.name == {"cifar10": "cifar10", "tinyimagenet": "tiny-imagenet"}[data]
    assert (config.attack.norm, config.attack.eps) == (norm, {"linf": 8 / 255, "l2": 0.5}[norm])
    assert (config.attack.steps, config.attack.step_size) == (10, config.attack.eps / 4)
    assert config.evaluation.steps == 40


def test_the_strong_baseline_has_the_settings_of_strong_baselines() -> None:
    for recipe, data, epochs, ema in (
        ("strong-cifar10", "cifar10", 100, 0.9995),
        ("strong-cifar10-30", "cifar10", 30, 0.999),
        ("strong-cifar100", "cifar100", 100, 0.9995),
    ):
        config = build_config(f"{recipe}-at")
        optim, attack = config.optim, config.attack
        assert (optim.lr, optim.momentum, optim.weight_decay) == (0.1, 0.9, 5e-4)
        assert (optim.batch_size, optim.epochs, optim.schedule) == (128, epochs, "onecycle")
        assert (optim.ema, config.loss.label_smoothing) == (ema, 0.4)
        assert (attack.norm, attack.eps, attack.step_size) == ("linf", 8 / 255, 2 / 255)
        assert (attack.steps, config.evaluation.steps) == (10, 40)
        assert (config.data.name, config.data.limit, config.data.val_fraction) == (data, None, 0.1)
        assert (config.model.name, config.mi.enabled) == ("resnet18", False)
        mi = build_config(recipe).mi
        assert (mi.form, mi.schedule, mi.balance) == ("bounded", "joint", 0.2)


def test_a_recipe_whose_name_begins_with_another_one_keeps_its_variants() -> None:
    long, short = build_config("strong-cifar10-at"), build_config("strong-cifar10-30-at")
    assert (long.optim.epochs, short.optim.epochs) == (100, 30)
    assert not long.mi.enabled
    assert not short.mi.enabled


def test_data_without_a_recipe_choose_one() -> None:
    for data, expected in (
        ("cifar10", "cifar10-cpu"), ("cifar100", "strong-cifar100"), ("npz", "photos"),
        ("tiny-imagenet", "paper-tinyimagenet-linf"), ("digits", "quickstart"),
    ):  # fmt: skip
        name, _, problems = named_recipe(None, {"data": {"name": data}})
        assert (name, problems) == (expected, [])


WITH_MI = {
    loss_titles(name)[1].lower().replace("_", "-"): name for name in losses() if name != "at"
}
"""Variants of losses with the recipe's MI term."""

SAID: dict[str, dict[str, Any]] = {
    "bounded": {
        "mi.form": "bounded", "mi.schedule": "joint", "mi.balance": 0.2, "mi.weight": None,
        "mi.score": "cosine", "mi.objective": "mim", "mi.samples": "all", "mi.cosine": 0,
        "mi.bound": "infonce", "mi.difference": 1, "mi.clamp": True,
    },
    "paper": {
        "mi.form": "paper", "mi.schedule": "staged", "mi.weight": 5, "mi.balance": None,
        "mi.score": "dot", "mi.objective": "contrast", "mi.samples": "selected", "mi.cosine": 1,
        "mi.bound": "dv", "mi.difference": 0.1, "mi.clamp": False,
    },
    "released": {
        "mi.form": "released", "mi.schedule": "staged", "mi.difference": 0, "mi.cosine": 1,
        "mi.samples": "selected-released", "mi.bound": "dv-released", "loss.batchnorm": "released",
    },
    "wmim": {
        "mi.form": "wmim", "mi.schedule": "joint", "mi.natural_pattern": "adversarial",
        "mi.natural": True, "mi.adversarial": False,
    },
    "random": {"mi.form": "random", "mi.balance": 0.2},
    "teacher": {
        "mi.form": "teacher", "mi.schedule": "joint", "mi.weight": 1, "mi.mix": False,
        "mi.teacher_temperature": 1, "mi.teacher_ema": 0.995,
    },
    "teacher-awp": {"mi.form": "teacher", "mi.weight": 1, "optim.awp": 0.005},
    "adr": {
        "mi.form": "adr", "mi.schedule": "joint", "mi.weight": "cosine:0.7:0.95", "mi.mix": True,
        "mi.teacher_temperature": "cosine:2.5:2", "mi.teacher_ema": 0.995,
        "loss.label_smoothing": 0,
    },
    "adr-awp": {
        "mi.form": "adr", "mi.schedule": "joint", "mi.weight": "cosine:0.7:0.85", "mi.mix": True,
        "mi.teacher_temperature": "cosine:2.5:1.5", "mi.teacher_ema": 0.995,
        "loss.label_smoothing": 0, "optim.awp": 0.005,
    },
    "js": {"mi.form": "js", "mi.schedule": "joint", "mi.weight": "linear:0:10"},
    **{name: {"mi.weight": 0, "loss.base": name} for name in losses()},
    **{variant: {"loss.base": name} for variant, name in WITH_MI.items()},
    "at-awp": {"mi.weight": 0, "loss.base": "at", "optim.awp": 0.005},
    "at-clean-forward": {"mi.weight": 0, "loss.base": "at", "loss.batchnorm": "mix"},
    "mi-off": {"mi.weight": 0},
    "no-adversarial-mi": {"mi.adversarial": False, "mi.natural": True},
    "no-natural-mi": {"mi.natural": False, "mi.adversarial": True},
    "no-difference": {"mi.difference": 0, "mi.cosine": 1, "mi.weight": 5},
}  # fmt: skip
"""Settings of each method in the specification."""

OFF = {*losses(), "at-awp", "at-clean-forward", "mi-off"}
CLOSED = {*CLOSED_FORMS, "teacher-awp", "adr-awp"}
KEEPS_THE_FORM = {*OFF, *WITH_MI, "no-adversarial-mi", "no-natural-mi", "no-difference"}
ALWAYS_THE_SAME = (
    "data", "model", "attack", "optim", "scaling", "validation", "evaluation", "seed",
)  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("base", BASE_RECIPES)
def test_a_variant_changes_the_method_only(base: str, variant: str) -> None:
    if f"{base}-{variant}" not in RECIPES:
        assert (variant, build_config(base).mi.cosine) == ("no-difference", 0)
        return
    plain, config = build_config(base), build_config(f"{base}-{variant}")
    flat = flatten(config.model_dump())
    assert {key: flat[key] for key in SAID[variant]} == SAID[variant]
    assert config.mi.enabled == (variant not in OFF)
    assert config.mi.has_estimators == (variant not in {*OFF, "random", *CLOSED})
    same = config.model_copy(update={"optim": config.optim.model_copy(update={"awp": 0.0})})
    for section in ALWAYS_THE_SAME:
        assert getattr(same, section) == getattr(plain, section)
    assert (config.optim.awp > 0) == variant.endswith("-awp")
    capacity = ("hidden", "base_width", "depth", "estimator_lr", "temperature")
    if variant in CLOSED:
        assert all(flat[f"mi.{key}"] == getattr(MIConfig(), key) for key in capacity)
    elif base in ("quickstart", "cifar10-cpu", *PAPER):  # which say what it is
        assert {key: flat[f"mi.{key}"] for key in capacity} == {
            key: getattr(plain.mi, key) for key in capacity
        }
    if variant in KEEPS_THE_FORM:
        assert (config.mi.form, config.mi.schedule) == (plain.mi.form, plain.mi.schedule)
    if variant in WITH_MI:
        assert config.mi == plain.mi


def test_every_variant_has_an_expected_fact() -> None:
    assert set(SAID) == set(VARIANTS)


@pytest.mark.parametrize("base", BASE_RECIPES)
def test_with_weight_0_a_run_is_plain_training_in_one_phase(base: str) -> None:
    for variant in OFF:
        config = build_config(f"{base}-{variant}")
        assert [phase.name for phase in phases_of(config)] == ["classifier"]


def test_smoothing_is_dropped_for_losses_without_it() -> None:
    assert build_config("strong-cifar10-mi-off").loss.label_smoothing == 0.4
    for variant in ("trades", "mart", "ikl", "namid-t", "namid-m"):
        assert build_config(f"strong-cifar10-{variant}").loss.label_smoothing is None


def test_the_losses_of_the_paper_have_their_settings_and_names() -> None:
    for variant, base, beta in (
        ("at", "at", None), ("trades", "trades", 6), ("mart", "mart", 5),
        ("namid-t", "trades", 6), ("namid-m", "mart", 5),
    ):  # fmt: skip
        loss = build_config(f"quickstart-{variant}").loss
        assert (loss.base, loss.beta, loss.batchnorm) == (base, beta, "adversarial")


def test_a_variant_without_an_mi_term_is_refused_with_a_remedy() -> None:
    with pytest.raises(UserError) as caught:
        build_config("quickstart-no-difference")
    assert "quickstart-no-difference has no MI term left" in str(caught.value)
    remedy = re.search(r"recipe=(\S+) with (.*)", str(caught.value))
    assert remedy is not None
    mi = build_config(remedy[1], split_words(remedy[2].split()).settings).mi
    assert (mi.difference, mi.cosine) == (0, 1)
    refused = {f"{b}-{v}" for b in BASE_RECIPES for v in VARIANTS} - set(RECIPES)
    assert refused == {f"{base}-no-difference" for base in BASE_RECIPES if base not in PAPER}


def test_a_variant_keeps_its_method_with_another_form() -> None:
    paper = {"mi": {"form": "paper"}}
    off = build_config("quickstart-at", paper).mi
    assert (off.form, off.enabled) == ("paper", False)
    ablation = build_config("quickstart-no-adversarial-mi", paper).mi
    assert (ablation.form, ablation.weight, ablation.adversarial) == ("paper", 5, False)
    assert build_config("quickstart-wmim", paper).mi.adversarial  # wmim's, which it is no more


@pytest.mark.parametrize("form", CLOSED_FORMS)
def test_a_form_without_estimators_resets_their_keys_in_a_recipe(form: str) -> None:
    for base in ("quickstart", "paper-cifar10-linf"):
        mi = build_config(base, {"mi": {"form": form}}).mi
        assert mi == MIConfig.model_validate({"form": form})
        again = build_config(f"{base}-{form}", {"mi": {"form": "bounded"}}).mi
        assert again.has_estimators
        assert (again.mix, again.teacher_temperature) == (False, 1)


def test_settings_override_the_variant() -> None:
    assert build_config("quickstart-at", {"mi": {"balance": 0.3}}).mi.enabled
    assert build_config("quickstart-trades", {"loss": {"beta": 1.0}}).loss.beta == 1


def test_a_full_name_is_its_base_overlaid_with_the_variant() -> None:
    for base, recipe in BASE_RECIPES.items():
        assert RECIPES[base] is recipe
        assert RECIPES[f"{base}-paper"].settings == overlay(
            recipe.settings, VARIANTS["paper"].settings
        )
        assert RECIPES[f"{base}-paper"].settings == on_recipe(f"{base}-paper", {})[0]


def test_an_unknown_recipe_gets_a_suggestion_with_other_problems() -> None:
    with pytest.raises(UserError) as caught:
        build_config("quikstart", {"attack": {"eps": "8"}})
    first, second = str(caught.value).splitlines()
    assert first == "unknown recipe 'quikstart': did you mean quickstart?"
    assert "eps=8/255" in second


def test_a_misspelt_variant_gets_the_full_name() -> None:
    with pytest.raises(UserError, match=r"did you mean paper-cifar10-linf-trades\?"):
        build_config("paper-cifar10-linf-trade")


def test_an_unknown_recipe_without_similar_ones_lists_all() -> None:
    with pytest.raises(UserError) as caught:
        build_config("zzzzzz")
    assert f"there are {', '.join(BASE_RECIPES)}" in str(caught.value)
    assert all(f"-{variant}" in str(caught.value) for variant in VARIANTS)


def test_recipes_are_not_changed_by_overrides() -> None:
    before = build_config("quickstart")
    build_config("quickstart", {"attack": {"eps": 0.01}, "data": {"name": "mnist"}})
    assert build_config("quickstart") == before
