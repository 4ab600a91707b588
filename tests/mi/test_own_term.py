"""A user's own MI term: trained like any other, and refused in one message before any long work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_config, tiny_state
from torch import nn

import raymi
from raymi.commands.preflight import input_problems
from raymi.config import Config
from raymi.errors import UserError
from raymi.mi.divergences import jensen_shannon
from raymi.mi.forms import MITerm
from raymi.mi.forms.registry import forms, title_of
from raymi.models.ema import WeightEMA
from raymi.reporting.accuracies import method_name


class Divergence(MITerm):
    """The JS form again, as a user would write it."""

    title = "Divergence"
    needs_clean = True
    needs_clean_gradient = True

    def __call__(self, x, x_adv, logits, logits_adv, y, shard):
        loss = shard.mean(jensen_shannon(logits, logits_adv))
        return loss, {"mi/js": loss.detach()}


class Averaged(Divergence):
    """A term with an average of the classifier, a count and soft targets."""

    averages_model = True

    def __init__(self, model):
        self.average = WeightEMA(model, 0.9)
        self.averages = (self.average,)
        self.epochs = 0

    @classmethod
    def build(cls, context):
        return cls(context.model)

    def target(self, x, y, shard):
        with torch.no_grad():
            return self.average.model.eval()(x).softmax(dim=1)

    def end_epoch(self, group):
        self.epochs += 1

    def state_dict(self):
        return {"average": self.average.state_dict(), "epochs": self.epochs}

    def load_state_dict(self, state):
        self.average.load_state_dict(state["average"])
        self.epochs = state["epochs"]


class Vector(MITerm):
    def __call__(self, x, x_adv, logits, logits_adv, y, shard):
        return logits_adv.sum(dim=1), {}


class Attached(MITerm):
    def __call__(self, x, x_adv, logits, logits_adv, y, shard):
        loss = shard.mean(logits_adv.sum(dim=1))
        return loss, {"mi/sum": loss}


class LocalMean(MITerm):
    def __call__(self, x, x_adv, logits, logits_adv, y, shard):
        return logits_adv.square().mean(), {}


class Alone(MITerm):
    def __call__(self, x, x_adv, logits, logits_adv, y, shard):
        return logits_adv.sum()


class Unsaved(Divergence):
    def state_dict(self):
        return {"network": nn.Linear}


class WithEstimators(Divergence):
    uses_estimators = True


class Demanding(Divergence):
    def __init__(self, size):
        self.size = size


def function(x):
    return x


GIVEN = Divergence()


UNUSED = dict.fromkeys(("mi.hidden", "mi.base_width", "mi.depth"))


def first_step(form: str, **settings):
    settings = UNUSED | settings if form == "js" else settings
    state, loader = tiny_state(tiny_config({"mi.form": form, **settings}))
    metrics = state.step(next(loader.epoch(0)))
    return state, {name: value.item() for name, value in metrics.items()}


def test_an_own_term_equals_the_form_of_raymi_that_it_copies():
    _, own = first_step("test_own_term:Divergence", **{"mi.weight": 2})
    _, given = first_step("test_own_term:GIVEN", **{"mi.weight": 2})
    _, js = first_step("js", **{"mi.weight": 2})
    assert own == given == js
    assert first_step("test_own_term:Divergence")[1]["loss"] != own["loss"]  # weight 1


def test_a_term_with_an_average_and_soft_targets_is_trained_and_resumed():
    form = "test_own_term:Averaged"
    state, _ = first_step(form)
    average = state.mi.average
    assert average.steps == 1
    assert state.mi.epochs == 0  # the check counts on a copy
    other, _ = tiny_state(tiny_config({"mi.form": form}))
    other.load_state_dict(state.state_dict())
    assert other.mi.average.steps == 1
    for copied, tensor in zip(
        other.mi.average.model.parameters(), average.model.parameters(), strict=True
    ):
        assert torch.equal(copied, tensor)


def test_the_term_of_the_documentation_trains(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n(# my/terms.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "terms_of_the_page.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    _, metrics = first_step("terms_of_the_page:Confidence")
    assert 0 < metrics["mi/entropy"] < 2.4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("function", "must be a subclass of raymi.mi.forms.MITerm, got function"),
        ("missing", "no function 'missing'"),
        ("Demanding", "cannot be built"),
        ("Vector", r"to a 0-d floating-point tensor, got \(5,\) of torch.float32"),
        ("Attached", "must return a loss and a dict of detached metrics"),
        ("LocalMean", "depends on the number of workers"),
        ("Alone", "to a loss and metrics, but TypeError"),
        ("Unsaved", "must have a state_dict of tensors and plain values"),
        ("WithEstimators", "cannot have raymi's estimators"),
    ],
)
def test_a_term_that_cannot_be_trained_is_refused(name, message):
    with pytest.raises(UserError, match=message) as refusal:
        tiny_state(tiny_config({"mi.form": f"test_own_term:{name}"}))
    assert str(refusal.value).startswith(f"MI term 'test_own_term:{name}'")


def test_soft_targets_with_a_loss_of_labels_are_refused():
    with pytest.raises(UserError, match="returns soft targets, but the loss takes labels"):
        tiny_state(tiny_config({"mi.form": "test_own_term:Averaged", "loss.base": "trades"}))


def test_the_configuration_does_not_import_an_own_term_and_the_check_of_inputs_does():
    config = tiny_config({"mi.form": "no_such_module:Term"})
    assert not config.mi.has_estimators
    (problem,) = input_problems(config, new_run=False)
    assert "cannot import module 'no_such_module'" in problem
    with pytest.raises(ValueError, match=r"unknown form 'boundd'.*bounded"):
        Config.model_validate({"mi": {"form": "boundd"}})


def test_a_method_with_an_own_term_is_named_by_loss_and_class():
    config = tiny_config({"mi.form": "test_own_term:Divergence"})
    assert method_name(config) == "AT + Divergence"
    assert title_of("my.terms:Confidence") == "Confidence"
    assert {name: title_of(name) for name in forms()}["bounded"] == ""


def test_namid_loss_takes_an_own_term():
    loss = raymi.NAMIDLoss(10, 8, form="test_own_term:Divergence", weight=2.0)
    x, (z, z_adv) = torch.rand(6, 3, 8, 8), torch.randn(2, 6, 10, requires_grad=True)
    value = loss(x, x, z, z_adv, torch.arange(6))
    assert torch.autograd.grad(value, z)[0].any()
    assert loss.metrics["mi/js"] > 0
