"""A user's own loss: trained like any other, and refused in one message before any long work."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import tiny_config, tiny_state

from raymi.errors import UserError
from raymi.losses import AdversarialLoss


class Squared(AdversarialLoss):
    """Cross-entropy of h(x_adv), and the squared distance of both outputs."""

    title = "Squared"
    needs_clean_gradient = True
    attack_objective = "kl"

    class Settings(AdversarialLoss.Settings):
        beta: float = 2.0
        """Weight of the distance."""

    def __call__(self, logits, logits_adv, y, shard):
        apart = (logits - logits_adv).square().sum(dim=1)
        robust = F.cross_entropy(logits_adv, y, reduction="none")
        return shard.mean(robust + self.settings.beta * apart)


class Centred(AdversarialLoss):
    """A loss that needs the outputs of all workers."""

    title = "Centred"

    def __call__(self, logits, logits_adv, y, shard):
        centre = shard.sum(logits_adv.detach().sum(dim=0)) / shard.num
        return shard.mean((logits_adv - centre).square().sum(dim=1))


class Broken(AdversarialLoss):
    title = "Broken"


class Vector(Broken):
    def __call__(self, logits, logits_adv, y, shard):
        return F.cross_entropy(logits_adv, y, reduction="none")


class Number(Broken):
    def __call__(self, logits, logits_adv, y, shard):
        return 1.0


class Fixed(Broken):
    def __call__(self, logits, logits_adv, y, shard):
        return F.cross_entropy(logits_adv.detach(), y)


class Infinite(Broken):
    def __call__(self, logits, logits_adv, y, shard):
        return shard.mean((0 * logits_adv).sum(dim=1).log())


class OwnMean(Broken):
    def __call__(self, logits, logits_adv, y, shard):
        return F.cross_entropy(logits_adv, y)


class Raising(Broken):
    def __call__(self, logits, logits_adv, y, shard):
        raise KeyError("no table")


class Unsaved(Centred):
    def state_dict(self):
        return {"function": Unsaved}


class Objective(Centred):
    attack_objective = "dlr"


def function(logits, logits_adv, y, shard):
    return shard.mean(logits_adv.sum(dim=1))


CONSTANT = 3
GIVEN = Squared(beta=1.0)


def first_step(**settings):
    state, loader = tiny_state(tiny_config({"mi.weight": 0, **settings}))
    metrics = state.step(next(loader.epoch(0)))
    return state, {name: value.item() for name, value in metrics.items()}


def test_an_own_loss_is_trained_with_its_settings_and_its_attack():
    state, metrics = first_step(**{"loss.base": "test_own_loss:Squared", "loss.beta": 0.5})
    assert state.loss.settings.beta == 0.5
    assert state.attack.objective == "kl"
    other, others = first_step(**{"loss.base": "test_own_loss:Squared"})
    assert other.loss.settings.beta == 2.0
    assert metrics["loss"] != others["loss"]
    _, given = first_step(**{"loss.base": "test_own_loss:GIVEN"})
    assert given["loss"] == first_step(
        **{"loss.base": "test_own_loss:Squared", "loss.beta": 1.0}
    )[1]["loss"]  # fmt: skip


def test_the_loss_of_the_documentation_trains(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n(# my/losses.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "losses_of_the_page.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    losses = [
        first_step(**{"loss.base": "losses_of_the_page:Paired", "loss.beta": beta})[1]["loss"]
        for beta in (0, 2)
    ]
    assert losses[0] < losses[1]


def test_a_loss_that_needs_other_workers_is_accepted():
    assert first_step(**{"loss.base": "test_own_loss:Centred"})[1]["loss"] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("function", "must be a subclass of raymi.losses.AdversarialLoss, got function"),
        ("CONSTANT", "is 3, not a function"),
        ("missing", "no function 'missing'"),
        ("Broken", "but NotImplementedError"),
        ("Vector", r"to a 0-d floating-point tensor, got \(5,\) of torch.float32"),
        ("Number", "to a 0-d floating-point tensor, got float"),
        ("Fixed", "must have a gradient at logits_adv"),
        ("Infinite", "must be finite with finite gradients, got -inf"),
        ("OwnMean", "depends on the number of workers"),
        ("Raising", "no table"),
        ("Unsaved", "must have a state_dict of tensors and plain values"),
        ("Objective", "must have attack_objective ce or kl, got 'dlr'"),
    ],
)
def test_a_loss_that_cannot_be_trained_is_refused(name, message):
    with pytest.raises(UserError, match=message) as refusal:
        tiny_state(tiny_config({"loss.base": f"test_own_loss:{name}", "mi.weight": 0}))
    assert str(refusal.value).startswith(f"loss 'test_own_loss:{name}'")


def test_settings_that_an_own_loss_does_not_have_are_refused():
    settings = {"loss.base": "test_own_loss:Centred", "loss.beta": 1.0, "mi.weight": 0}
    with pytest.raises(UserError, match="loss 'test_own_loss:Centred' cannot be built"):
        tiny_state(tiny_config(settings))


def test_the_configuration_does_not_import_an_own_loss():
    assert tiny_config({"loss.base": "no_such_module:Loss"}).loss.base == "no_such_module:Loss"
    module = types.ModuleType("own_loss_with_kl")
    module.Loss = Squared
    sys.modules[module.__name__] = module
    settings = {"loss.base": "own_loss_with_kl:Loss", "attack.start": "image", "mi.weight": 0}
    with pytest.raises(UserError, match="KL has no gradient at the image itself"):
        tiny_state(tiny_config(settings))


def test_the_check_of_a_loss_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    first_state, _ = tiny_state(tiny_config({"loss.base": "test_own_loss:Centred"}))
    assert torch.equal(before, torch.get_rng_state())
    assert first_state.loss.state_dict() == {}
