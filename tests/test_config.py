"""The tree of settings: documentation, immutability, and refused values."""

from __future__ import annotations

import math
import os

import pytest
from pydantic import ValidationError

from raymi.attacks.settings import AttackConfig
from raymi.config import Config, OptimConfig, ScalingConfig, TrackingConfig
from raymi.data import DATASETS
from raymi.data.settings import DataConfig
from raymi.losses.settings import LossConfig
from raymi.mi.forms.registry import forms
from raymi.mi.settings import MIConfig
from raymi.models.settings import ModelConfig
from raymi.overrides import examine, leaves, nest


def test_every_key_has_documentation() -> None:
    missing = [key for key, field in leaves() if len((field.description or "").split()) < 2]
    assert missing == []
    assert len(list(leaves())) > 60


def test_documentation_of_the_data_set_names_every_data_set() -> None:
    text = DataConfig.model_fields["name"].description or ""
    assert [name for name in DATASETS if name not in text] == []


@pytest.mark.parametrize("section", [None, "attack", "mi"])
def test_a_configuration_cannot_be_changed(section: str | None) -> None:
    config = Config()
    target, key = (config, "seed") if section is None else (getattr(config, section), "norm")
    with pytest.raises(ValidationError, match="frozen"):
        setattr(target, key if section != "mi" else "bound", 1)


def test_defaults_are_a_valid_configuration_that_survives_json() -> None:
    config = Config()
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_eps_is_8_over_255_by_default() -> None:
    assert AttackConfig().eps == 8 / 255
    assert AttackConfig().step_size == 2 / 255
    assert AttackConfig(alpha=0.01).step_size == 0.01


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.5/255", 0.5 / 255), (" 4 / 255 ", 4 / 255), ("1e-2", 0.01), (0, 0)],
)
def test_numbers_may_be_fractions_and_powers(text: object, value: float) -> None:
    assert AttackConfig.model_validate({"eps": text}).eps == value


@pytest.mark.parametrize("text", ["8/255/2", "8/0", "/255", "8/", "nan", "inf", "-1", "1e999", "x"])
def test_invalid_radii_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        AttackConfig.model_validate({"eps": text})


def test_eps_in_0_to_255_is_refused_with_the_intended_fraction() -> None:
    with pytest.raises(ValidationError, match=r"got 8: .*eps=8/255\?"):
        AttackConfig(eps=8)


def test_l2_radii_may_exceed_one() -> None:
    assert AttackConfig(norm="l2", eps=2.0).eps == 2.0
    with pytest.raises(ValidationError, match="at most 1 for linf"):
        AttackConfig(norm="linf", eps=2.0)


def test_steps_longer_than_the_ball_are_refused_unless_eps_is_0() -> None:
    with pytest.raises(ValidationError, match=r"alpha must be at most 2 \* eps"):
        AttackConfig(eps=0.1, alpha=0.21)
    assert AttackConfig(eps=0.1, alpha=0.2).step_size == 0.2
    assert AttackConfig(eps=0.0, alpha=0.2).eps == 0


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (AttackConfig, {"steps": -1}),
        (AttackConfig, {"steps": 1.5}),
        (DataConfig, {"val_fraction": 0}),
        (DataConfig, {"val_fraction": 1}),
        (DataConfig, {"image_size": 7}),
        (DataConfig, {"name": "cifr10"}),
        (ModelConfig, {"name": "resnet"}),
        (ModelConfig, {"depth": 17}),
        (ModelConfig, {"width": 0}),
        (OptimConfig, {"epochs": 0}),
        (OptimConfig, {"lr": 0}),
        (OptimConfig, {"momentum": 1}),
        (OptimConfig, {"milestones": "0.5,1"}),
        (OptimConfig, {"schedule": "cosin"}),
        (ScalingConfig, {"workers": 0}),
        (ScalingConfig, {"workers": "0..2"}),
        (ScalingConfig, {"workers": "3..2"}),
        (ScalingConfig, {"workers": "2.."}),
        (ScalingConfig, {"workers": 1.5}),
        (ScalingConfig, {"workers": True}),
        (ScalingConfig, {"use_gpu": "maybe"}),
        (MIConfig, {"depth": 6}),
        (MIConfig, {"temperature": 0}),
        (MIConfig, {"form": "published"}),
        (MIConfig, {"hiden": 3}),
        (TrackingConfig, {"registered_name": "a/b"}),
        (TrackingConfig, {"experiment": ""}),
        (TrackingConfig, {"experiment": "x" * 501}),
        (LossConfig, {"base": "trades", "label_smoothing": 0.1}),
        (LossConfig, {"base": "at", "beta": 6.0}),
        (Config, {"checkpoint": {"keep": 1}}),
        (Config, {"name": "two words"}),
        (Config, {"name": ".hidden"}),
        (Config, {"seed": -1}),
        (Config, {"optim": {"batch_size": 2}, "scaling": {"workers": 3}}),
        (Config, {"optim": {"batch_size": 2}, "scaling": {"workers": "1..3"}}),
        (Config, {"optim": {"batch_size": 1}}),
    ],
)
def test_values_out_of_range_are_refused(section: type[Config], values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(values)


def test_one_image_batches_are_valid_without_mi() -> None:
    assert Config(optim=OptimConfig(batch_size=1), mi=MIConfig(weight=0)).optim.batch_size == 1


def test_the_configuration_does_not_import_a_user_model() -> None:
    assert ModelConfig(name="no_such_module:net").name == "no_such_module:net"


@pytest.mark.parametrize(("base", "beta"), [("trades", 6.0), ("mart", 5.0), ("at", None)])
def test_beta_defaults_to_the_loss_s_usual_value(base: str, beta: float | None) -> None:
    assert LossConfig.model_validate({"base": base}).beta == beta
    if beta is not None:
        assert LossConfig.model_validate({"base": base, "beta": 2}).beta == 2


def test_the_default_form_balances_gradients() -> None:
    mi = MIConfig()
    assert (mi.form, mi.balance, mi.weight, mi.enabled) == ("bounded", 0.2, None, True)


@pytest.mark.parametrize("form", forms())
def test_a_form_sets_its_values(form: str) -> None:
    mi = MIConfig.model_validate({"form": form})
    assert {key: getattr(mi, key) for key in forms()[form].defaults} == forms()[form].defaults


def test_the_paper_s_form_is_equations_4_to_9() -> None:
    mi = MIConfig(form="paper")
    assert (mi.weight, mi.balance, mi.difference, mi.cosine) == (5.0, None, 0.1, 1.0)
    assert (mi.bound, mi.score, mi.objective, mi.samples) == ("dv", "dot", "contrast", "selected")
    assert (mi.clamp, mi.clip_contrast, mi.hidden) == (False, False, 2048)


def test_one_key_of_a_form_can_be_set_alone() -> None:
    mi = MIConfig(form="paper", bound="infonce")
    assert (mi.bound, mi.score) == ("infonce", "dot")


def test_weight_and_balance_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="either weight or balance, got weight=1 and"):
        MIConfig(weight=1, balance=0.2)
    assert MIConfig(weight=2).balance is None
    assert MIConfig(form="paper", balance=0.3).weight is None


@pytest.mark.parametrize(
    "values",
    [
        {"natural": False, "adversarial": False},
        {"difference": 0},
        {"form": "wmim", "natural": False},
    ],
)
def test_an_mi_loss_without_a_term_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"leave no MI term: .* weight=0"):
        MIConfig.model_validate(values)
    assert not MIConfig.model_validate({**values, "weight": 0}).enabled


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"form": "js", "schedule": "staged"},
            "js does not use schedule, got schedule=staged",
        ),
        ({"form": "teacher", "hidden": 64}, "form=teacher does not use hidden, got hidden=64"),
        ({"form": "adr", "estimators": "run"}, "form=adr does not use (estimators|schedule)"),
        ({"form": "js", "natural": False}, "form=js does not use natural"),
        ({"form": "js", "mix": True}, "form=js does not use mix"),
        (
            {"teacher_ema": 0.9},
            "form=bounded does not use teacher_ema, got teacher_ema=0.9",
        ),
        ({"form": "adr", "balance": 0.2}, "mix=true adds no MI term to the loss, got balance=0.2"),
        ({"form": "adr", "natural": False}, "mix=true adds no MI term to the loss, got natural"),
        (
            {"bound": "jsd", "natural_cap": True},
            "natural_cap=true needs a bound in nats",
        ),
        ({"form": "released", "negative_classes": "other"}, "negative_classes=other needs a bound"),
    ],
)
def test_a_form_refuses_keys_that_it_does_not_use(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MIConfig.model_validate(values)


@pytest.mark.parametrize("section", [{"loss": {"base": "trades"}}, {"attack": {"name": "m:f"}}])
def test_refined_labels_need_a_loss_and_an_attack_that_take_them(
    section: dict[str, object],
) -> None:
    with pytest.raises(ValidationError, match="labels are needed by"):
        Config.model_validate({"mi": {"form": "adr"}, **section})
    assert Config.model_validate({"mi": {"form": "adr", "mix": False}, **section}).mi.averages_model
    assert not Config.model_validate({"mi": {"form": "adr", "weight": 0}, **section}).mi.enabled


@pytest.mark.parametrize("values", [{"weight": 0}, {"balance": 0}])
def test_without_weight_mi_is_off(values: dict[str, object]) -> None:
    assert not MIConfig.model_validate(values).enabled


def test_use_gpu_may_be_a_python_bool() -> None:
    assert ScalingConfig.model_validate({"use_gpu": True}).use_gpu == "true"
    assert ScalingConfig.model_validate({"use_gpu": "False"}).use_gpu == "false"


def test_a_path_that_is_not_utf_8_is_refused() -> None:
    for part in (b"\xff", b"sets/\xff/mine"):
        with pytest.raises(ValidationError, match=r"a path in UTF-8, got .*udcff.*: rename it"):
            DataConfig(root=os.fsdecode(part))


def test_a_folder_may_start_at_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(Config.model_validate({"out": "~/runs"}).out) == "/somewhere/runs"


def test_every_default_number_is_finite() -> None:
    numbers = [field.default for _, field in leaves() if isinstance(field.default, float)]
    assert len(numbers) > 10
    assert all(map(math.isfinite, numbers))


@pytest.mark.parametrize(
    ("typed", "kept", "least", "most"),
    [(3, 3, 3, 3), ("3", 3, 3, 3), ("1..4", "1..4", 1, 4), (" 2 .. 2 ", 2, 2, 2)],
)
def test_workers_are_a_number_or_a_range(
    typed: int | str, kept: int | str, least: int, most: int
) -> None:
    scaling = ScalingConfig(workers=typed)
    assert scaling.workers == kept
    assert (scaling.least_workers, scaling.most_workers) == (least, most)
    assert scaling.elastic == (least < most)
    assert ScalingConfig.model_validate_json(scaling.model_dump_json()) == scaling


@pytest.mark.parametrize("key", ["mi.base_width", "mi.hidden", "mi.bound", "optim.lr"])
def test_none_is_refused_for_a_key_that_needs_a_value(key: str) -> None:
    _, problems = examine(nest({key: None, "mi.form": "random"}))
    assert len(problems) == 1
    assert problems[0].startswith(f"{key}: expected ")
