"""Shared stages: which settings they depend on, and that reuse equals training."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import tiny_config

from raymi.config import Config
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.engine.phases import phases_of
from raymi.mi.settings import MIConfig
from raymi.overrides import examine, leaves, overlay
from raymi.recipes import build_config
from raymi.runs.pretrained import pretrained_problems
from raymi.runs.run_folder import RunFolder
from raymi.tuning.shared_stages import split_shared_stages
from raymi.tuning.space import Space, find_space

TRIAL = {
    "data.limit": 100, "mi.schedule": "staged", "mi.pretrain_epochs": 1, "mi.estimator_epochs": 1,
    "optim.epochs": 1, "optim.awp_warmup": 0.0,
}  # fmt: skip

ALL, PRETRAINING, NOTHING = "estimators", "pretraining", None
VARIED = {
    "mi.form": ("bounded", "paper", PRETRAINING),
    "mi.schedule": ("staged", "joint", ALL),
    "mi.pretrained": ("/one", "/other", NOTHING),
    "mi.estimators": ("/one", "/other", NOTHING),
    "mi.pretrain_epochs": (1, 2, NOTHING),
    "mi.estimator_epochs": (1, 2, PRETRAINING),
    "mi.weight": (1.0, 2.0, ALL),
    "mi.balance": (0.2, 0.5, ALL),
    "mi.alpha_max": (1000.0, 0.1, ALL),
    "mi.bound": ("infonce", "dv", PRETRAINING),
    "mi.score": ("cosine", "dot", PRETRAINING),
    "mi.temperature": (0.1, 0.2, PRETRAINING),
    "mi.objective": ("mim", "contrast", PRETRAINING),
    "mi.clip_contrast": (True, False, PRETRAINING),
    "mi.samples": ("all", "selected", ALL),
    "mi.natural_pattern": ("clean", "adversarial", PRETRAINING),
    "mi.difference": (1.0, 2.0, ALL),
    "mi.cosine": (0.0, 1.0, ALL),
    "mi.clamp": (True, False, ALL),
    "mi.natural": (True, False, PRETRAINING),
    "mi.adversarial": (True, False, PRETRAINING),
    "mi.negatives": ("global", "local", PRETRAINING),
    "mi.score_memory": (256.0, 1.0, PRETRAINING),
    "mi.hidden": (16, 8, PRETRAINING),
    "mi.base_width": (4, 8, PRETRAINING),
    "mi.depth": (1, 2, PRETRAINING),
    "mi.estimator_lr": (1e-3, 1e-2, PRETRAINING),
    "loss.base": ("at", "trades", PRETRAINING),
    "loss.label_smoothing": (0.0, 0.1, NOTHING),
    "mi.natural_cap": (False, True, ALL),
    "mi.negative_classes": ("all", "other", PRETRAINING),
    "mi.teacher_temperature": (1.0, 2.0, ALL),
    "mi.teacher_ema": (0.995, 0.9, ALL),
    "mi.mix": (False, True, ALL),
    "loss.batchnorm": ("adversarial", "mix", ALL),
    "optim.epochs": (1, 2, ALL),
    "optim.ema": (0.0, 0.5, ALL),
    "optim.lr": (0.05, 0.1, NOTHING),
    "optim.awp": (0.0, 0.01, NOTHING),
    "attack.objective": ("ce", "kl", NOTHING),
    "attack.steps": (2, 1, NOTHING),
    "seed": (0, 1, NOTHING),
    "validation.steps": (2, 1, NOTHING),
    "evaluation.block": (256, 128, NOTHING),
    "scaling.channels_last": (False, True, NOTHING),
}
"""Value in `TRIAL`, another value, and the last phase that trials with either share."""

CAUTION = {
    "mi.clip_contrast", "mi.negatives", "mi.score_memory", "validation.steps", "evaluation.block",
    "scaling.channels_last",
}  # fmt: skip
"""Keys that count as read but may change nothing in a run of this size."""

NO_SUCH_PHASE = {
    "mi.schedule", "mi.pretrained", "mi.estimators",
    "mi.teacher_temperature", "mi.teacher_ema", "mi.mix",
}  # fmt: skip
"""Keys whose other value trains no estimators, or is refused where estimators are trained."""


def varying(key, *values):
    return Space(name="one", description="", parameters={key: {"choice": values}})


def choosing(**choices):
    return Space(name="some", description="", parameters={"some": {"choice": choices}})


def shared_phase(space, config):
    """Returns the last phase that all trials with it share."""
    checked = [examine(overlay(config.model_dump(), space.settings(v))) for v in space.grid()]
    trials = [
        split_shared_stages(trial, Path("shared"))[1] for trial, problems in checked if not problems
    ]
    for phase in (ALL, PRETRAINING):
        names = [stage.config.name for stages in trials for stage in stages if stage.phase == phase]
        if len(set(names)) == 1:
            return phase
    return NOTHING


def equal(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def trained(config, folder, until="classifier"):
    run = RunFolder(folder)
    assert train(config, LocalContext("cpu"), run, test=False, until=until).finished
    return run


def test_every_key_of_mi_is_covered():
    assert {key for key in VARIED if key.startswith("mi.")} == {
        f"mi.{key}" for key in MIConfig.model_fields
    }


@pytest.mark.parametrize(("key", "one", "other", "shared"), [(k, *v) for k, v in VARIED.items()])
def test_shared_phases_of_trials_that_differ_in_a_key(key, one, other, shared):
    assert shared_phase(varying(key, one, other), tiny_config(TRIAL)) == shared


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(tiny_config(TRIAL), tmp_path_factory.mktemp("plain"), "estimators")


@pytest.mark.parametrize("key", [key for key in VARIED if key not in NO_SUCH_PHASE])
def test_shared_phases_are_equal_bit_for_bit_and_others_differ(key, plain, tmp_path):
    _, other, shared = VARIED[key]
    config = tiny_config(TRIAL | {key: other})
    assert config != tiny_config(TRIAL)
    run = trained(config, tmp_path, "estimators")
    pretrained = equal(run.pretrained, plain.pretrained)
    estimators = equal(run.estimators, plain.estimators)
    if key not in CAUTION:
        assert (pretrained, estimators) == (shared is not NOTHING, shared == ALL)
    elif shared == PRETRAINING:
        assert pretrained


UNREAD = {
    "pretraining": {
        *("loss.base", "loss.beta", "loss.soft_weight", "loss.class_temperature"),
        *("loss.batchnorm", "optim.epochs", "optim.ema"),
    }
    | {f"mi.{key}" for key in MIConfig.model_fields} - {"mi.pretrain_epochs"},
    "estimators": {
        *("loss.beta", "loss.batchnorm", "loss.label_smoothing", "mi.pretrain_epochs"),
        *("loss.soft_weight", "loss.class_temperature", "attack.radius_warmup"),
        *("optim.name", "optim.clip_norm"),
        *(f"mi.{k}" for k in ("form", "weight", "balance", "alpha_max", "samples")),
        *(
            "mi.difference",
            "mi.cosine",
            "mi.clamp",
            "mi.natural_cap",
            "optim.epochs",
            "optim.lr",
            "optim.momentum",
        ),
        *("optim.nesterov", "optim.weight_decay", "optim.schedule", "optim.milestones"),
        *("optim.warmup", "optim.ema", "optim.awp", "optim.awp_warmup"),
    },
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_phase_gets_every_setting_except_those_known_as_unread(name):
    """A new key counts as read, unless a phase gets nothing of its section."""
    base = tiny_config(TRIAL | {"loss.base": "trades"})

    def given(config: Config) -> Config | None:
        return {phase.name: phase.config for phase in phases_of(config)}.get(name)

    assert given(base) is not None
    unread = {key for key, _ in leaves() if given(changed(base, key)) in (None, given(base))}
    assert unread - NO_SUCH_PHASE == UNREAD[name] - NO_SUCH_PHASE


def changed(config, key):
    """Returns the configuration with another value, valid or not, of a key."""
    section, _, leaf = key.rpartition(".")
    holder = getattr(config, section) if section else config
    value = getattr(holder, leaf)
    if key == "loss.base":
        other = "mart"
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, (int, float)):
        other = value + (1 if isinstance(value, int) else 0.5)
    else:
        other = "mart" if leaf == "base" else 0.25  # a phase builds its loss
    holder = holder.model_copy(update={leaf: other})
    return config.model_copy(update={section: holder}) if section else holder


def test_trials_share_a_phase_if_its_settings_are_equal():
    config = tiny_config(TRIAL)
    assert shared_phase(varying("loss.base", "at", "mart"), config) == ALL
    more = {"mi.balance": 0.1, "loss.base": "mart", "optim.ema": 0.9}
    assert shared_phase(choosing(one={}, other=more), config) == ALL
    assert shared_phase(choosing(one={}, other={"mi.hidden": 8}), config) == PRETRAINING
    assert shared_phase(choosing(one={"optim.lr": 1}, other=more), config) is NOTHING
    assert shared_phase(varying("mi.balance", 0.0, 0.5), config) == ALL, "one without MI"
    lengths = {"mi.pretrain_epochs": None, "mi.estimator_epochs": None}
    assert shared_phase(varying("optim.epochs", 1, 2), tiny_config(TRIAL | lengths)) is NOTHING
    assert shared_phase(varying("mi.balance", 0.1, 0.5), tiny_config()) is NOTHING, "joint"
    lent = tiny_config({"mi.pretrained": "/run"})
    assert shared_phase(varying("optim.lr", 0.1, 0.5), lent) == ALL


def test_shared_phases_of_the_papers_recipe():
    paper = build_config("paper-cifar10-linf")
    assert shared_phase(find_space("estimator_capacity"), paper) == PRETRAINING
    assert shared_phase(find_space("smoke"), paper) == PRETRAINING
    terms = find_space("mi_weights").fitted("paper-cifar10-linf")
    checked = [examine(overlay(paper.model_dump(), terms.settings(v)))[0] for v in terms.grid()]
    names = {
        stage.config.name
        for trial in checked
        for stage in split_shared_stages(trial, Path("shared"))[1]
    }
    assert len(checked) > 30
    assert len(names) == 1 + 3, "one classifier, and estimators for both, or one of the terms"


DROPOUT = {"model.name": "tiny_runs:dropout_net", "model.width": None, "model.depth": None}


@pytest.mark.parametrize("network", [{}, DROPOUT], ids=["plain", "dropout"])
def test_a_trial_with_reused_stages_equals_a_trial_that_trains_everything(network, tmp_path):
    first = tiny_config(TRIAL | network | {"mi.balance": 0.1, "seed": 3})
    trial = tiny_config(TRIAL | network | {"mi.balance": 0.5, "mi.samples": "selected", "seed": 3})
    _, stages = split_shared_stages(first, tmp_path)
    reusing, same = split_shared_stages(trial, tmp_path)
    assert [stage.folder.path for stage in stages] == [stage.folder.path for stage in same]
    for stage in stages:
        assert not stage.is_trained
        stage.folder.write_config(stage.config)
        trained(stage.config, stage.folder.path, stage.phase)
        assert stage.is_trained
    assert [phase.name for phase in phases_of(reusing)] == ["classifier"]
    assert [phase.name for phase in phases_of(stages[1].config)] == ["estimators", "classifier"]
    assert Config.model_validate_json(reusing.model_dump_json()) == reusing
    assert pretrained_problems(reusing) == []
    whole = trained(trial, tmp_path / "whole")
    quick = trained(reusing, tmp_path / "quick")
    for which in ("best", "last"):
        assert equal(whole.weights(which), quick.weights(which))
    assert equal(whole.estimators, quick.estimators)
    assert not equal(whole.weights("last"), trained(first, tmp_path / "first").weights("last"))


def test_earlier_runs_are_no_shared_stages(plain):
    joint = tiny_config()
    assert split_shared_stages(joint, Path("shared")) == (joint, [])
    lent = tiny_config(TRIAL | {"mi.pretrained": str(plain.path)})
    reusing, (stage,) = split_shared_stages(lent, Path("shared"))
    assert stage.phase == "estimators"
    assert stage.config.mi.pretrained == str(plain.path)
    assert reusing.mi.pretrained is None
    ready = tiny_config(TRIAL | {"mi.estimators": str(plain.path)})
    assert split_shared_stages(ready, Path("shared")) == (ready, [])
