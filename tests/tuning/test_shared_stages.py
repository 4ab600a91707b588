"""What trials share: which settings decide it, and that to reuse is to train."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import tiny_config

from raymi.config import Config, MIConfig
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.engine.phases import phases_of
from raymi.overrides import examine, leaves, overlay
from raymi.recipes import build_config
from raymi.runs.pretrained import pretrained_problems
from raymi.runs.run_folder import RunFolder
from raymi.tuning.shared_stages import parts_of
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
    "mi.gradient": ("mi", "random", ALL),
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
"""A setting of `TRIAL`, another one, and the last phase that trials which differ in it share."""

CAUTION = {
    "mi.clip_contrast", "mi.negatives", "mi.score_memory", "validation.steps", "evaluation.block",
    "scaling.channels_last",
}  # fmt: skip
"""Keys that count as read, and change nothing, or not surely, in a run as small as these."""

NO_SUCH_PHASE = {"mi.schedule", "mi.gradient", "mi.pretrained", "mi.estimators"}
"""Keys whose other value leaves no estimators to train."""


def varying(key, *values):
    return Space(name="one", description="", parameters={key: {"choice": values}})


def choosing(**choices):
    return Space(name="some", description="", parameters={"some": {"choice": choices}})


def shared_phase(space, config):
    """The last phase that all trials share which have it."""
    laid = [examine(overlay(config.model_dump(), space.settings(v))) for v in space.grid()]
    trials = [parts_of(trial, Path("shared"))[1] for trial, problems in laid if not problems]
    for phase in (ALL, PRETRAINING):
        names = [part.config.name for parts in trials for part in parts if part.phase == phase]
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


def test_of_every_key_of_mi_it_is_said_what_it_changes():
    assert {key for key in VARIED if key.startswith("mi.")} == {
        f"mi.{key}" for key in MIConfig.model_fields
    }


@pytest.mark.parametrize(("key", "one", "other", "shared"), [(k, *v) for k, v in VARIED.items()])
def test_what_trials_share_that_differ_in_a_key(key, one, other, shared):
    assert shared_phase(varying(key, one, other), tiny_config(TRIAL)) == shared


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(tiny_config(TRIAL), tmp_path_factory.mktemp("plain"), "estimators")


@pytest.mark.parametrize("key", [key for key in VARIED if key not in NO_SUCH_PHASE])
def test_what_is_shared_is_the_same_bit_for_bit_and_what_is_not_differs(key, plain, tmp_path):
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
    "pretraining": {"loss.base", "loss.beta", "loss.batchnorm", "optim.epochs", "optim.ema"}
    | {f"mi.{key}" for key in MIConfig.model_fields} - {"mi.pretrain_epochs"},
    "estimators": {
        *("loss.beta", "loss.batchnorm", "loss.label_smoothing", "mi.pretrain_epochs"),
        *(f"mi.{k}" for k in ("form", "weight", "balance", "alpha_max", "samples", "gradient")),
        *("mi.difference", "mi.cosine", "mi.clamp", "optim.epochs", "optim.lr", "optim.momentum"),
        *("optim.nesterov", "optim.weight_decay", "optim.schedule", "optim.milestones"),
        *("optim.warmup", "optim.ema", "optim.awp", "optim.awp_warmup"),
    },
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_phase_is_given_every_setting_but_those_that_it_is_known_not_to_read(name):
    """A key that is new counts as read, unless it is in a section that a phase gets none of."""
    base = tiny_config(TRIAL | {"loss.base": "trades"})

    def given(config: Config) -> Config | None:
        return {phase.name: phase.config for phase in phases_of(config)}.get(name)

    assert given(base) is not None
    unread = {key for key, _ in leaves() if given(changed(base, key)) in (None, given(base))}
    assert unread - NO_SUCH_PHASE == UNREAD[name] - NO_SUCH_PHASE


def changed(config, key):
    """The configuration with another value, valid or not, of a key."""
    section, _, leaf = key.rpartition(".")
    holder = getattr(config, section) if section else config
    value = getattr(holder, leaf)
    if isinstance(value, bool):
        other = not value
    elif isinstance(value, (int, float)):
        other = value + (1 if isinstance(value, int) else 0.5)
    else:
        other = 0.25
    holder = holder.model_copy(update={leaf: other})
    return config.model_copy(update={section: holder}) if section else holder


def test_trials_that_agree_in_what_a_phase_reads_share_it_however_they_say_so():
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


def test_what_trials_of_the_paper_s_recipe_share():
    paper = build_config("paper-cifar10-linf")
    assert shared_phase(find_space("estimator_capacity"), paper) == PRETRAINING
    assert shared_phase(find_space("smoke"), paper) == PRETRAINING
    terms = find_space("mi_weights")
    laid = [examine(overlay(paper.model_dump(), terms.settings(v)))[0] for v in terms.grid()]
    names = {part.config.name for trial in laid for part in parts_of(trial, Path("shared"))[1]}
    assert len(laid) > 30
    assert len(names) == 1 + 3, "one classifier, and estimators for both, or one of the terms"


DROPOUT = {"model.name": "tiny_runs:dropout_net", "model.width": None, "model.depth": None}


@pytest.mark.parametrize("network", [{}, DROPOUT], ids=["plain", "dropout"])
def test_a_trial_that_reuses_ends_as_one_that_trains_everything(network, tmp_path):
    first = tiny_config(TRIAL | network | {"mi.balance": 0.1, "seed": 3})
    trial = tiny_config(TRIAL | network | {"mi.balance": 0.5, "mi.samples": "selected", "seed": 3})
    _, parts = parts_of(first, tmp_path)
    reusing, same = parts_of(trial, tmp_path)
    assert [part.folder.path for part in parts] == [part.folder.path for part in same]
    for part in parts:
        assert not part.is_there
        part.folder.write_config(part.config)
        trained(part.config, part.folder.path, part.phase)
        assert part.is_there
    assert [phase.name for phase in phases_of(reusing)] == ["classifier"]
    assert [phase.name for phase in phases_of(parts[1].config)] == ["estimators", "classifier"]
    assert Config.model_validate_json(reusing.model_dump_json()) == reusing
    assert pretrained_problems(reusing) == []
    whole = trained(trial, tmp_path / "whole")
    quick = trained(reusing, tmp_path / "quick")
    for which in ("best", "last"):
        assert equal(whole.weights(which), quick.weights(which))
    assert equal(whole.estimators, quick.estimators)
    assert not equal(whole.weights("last"), trained(first, tmp_path / "first").weights("last"))


def test_what_was_trained_before_is_no_part(plain):
    joint = tiny_config()
    assert parts_of(joint, Path("shared")) == (joint, [])
    lent = tiny_config(TRIAL | {"mi.pretrained": str(plain.path)})
    reusing, (part,) = parts_of(lent, Path("shared"))
    assert part.phase == "estimators"
    assert part.config.mi.pretrained == str(plain.path)
    assert reusing.mi.pretrained is None
    ready = tiny_config(TRIAL | {"mi.estimators": str(plain.path)})
    assert parts_of(ready, Path("shared")) == (ready, [])
