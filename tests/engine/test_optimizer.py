"""Optimisers by name, gradient clipping and warm-ups: the same on any worker and after a resume."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from gloo import run_ranks
from tiny_runs import steps_in_float64, tiny_config, tiny_state
from torch import nn

from raymi.attacks.settings import AttackConfig
from raymi.config import OptimConfig
from raymi.engine.context import LocalContext
from raymi.engine.learner import Learner
from raymi.engine.loop import train
from raymi.engine.optimizer import build_optimizer
from raymi.engine.step import Attacker
from raymi.errors import UserError
from raymi.overrides import overlay
from raymi.runs.run_folder import RunFolder

ADAMW = {"optim.name": "adamw", "optim.lr": 3e-3}
ALL = {**ADAMW, "optim.clip_norm": 0.5, "optim.schedule": "cosine", "optim.warmup": 0.4,
       "attack.radius_warmup": 0.4, "mi.weight": 0}  # fmt: skip


class Counting(torch.optim.SGD):
    """Stores plain numbers in its state."""

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                parameter.data -= 0.01 / state["step"]


class Forgetful(torch.optim.SGD):
    """Counts its steps in an attribute, which no checkpoint has."""

    num = 0

    def step(self, closure=None):
        self.num += 1
        self.param_groups[0]["lr"] /= self.num
        super().step()


class InGroups(torch.optim.SGD):
    """Keeps a counter beside the settings of a group."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.param_groups[0]["k"] = 1

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.data.sub_(parameter.grad, alpha=0.1 / self.param_groups[0]["k"])
        self.param_groups[0]["k"] += 1


class Closure(nn.Module):
    pass


class OddState(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["what"] = Closure()


class Idle(torch.optim.SGD):
    def step(self, closure=None):
        pass


def no_decay(params, lr):
    return torch.optim.SGD(params, lr=lr)


def not_an_optimizer(params, lr, weight_decay):
    return list(params)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def own(name, **settings):
    return OptimConfig(name=f"{__name__}:{name}", lr=0.1, schedule="constant", **settings)


def test_adamw_equals_that_of_torch():
    model, optim = net(), OptimConfig(name="adamw", lr=0.01, weight_decay=0.3, schedule="constant")
    twin = copy.deepcopy(model)
    optimizer, _ = build_optimizer(model, optim, 4)
    expected = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.3)
    for one, opt in ((model, optimizer), (twin, expected)):
        one(torch.ones(2, 3)).square().sum().backward()
        opt.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_another_optimizer_drops_the_settings_of_the_recipes():
    base = {"optim": {"lr": 0.2, "momentum": 0.8, "epochs": 3}}
    tree = overlay(base, {"optim": {"name": "adamw", "weight_decay": "0.05"}})
    optim = OptimConfig.model_validate(tree["optim"])
    assert (optim.lr, optim.weight_decay, optim.epochs) == (1e-3, 0.05, 3)
    assert OptimConfig(name="sgd") == OptimConfig()


@pytest.mark.parametrize(
    "name", ["torch.optim:RMSprop", "torch.optim:NAdam", f"{__name__}:Counting"]
)
def test_an_own_optimizer_is_accepted_and_leaves_the_model_and_random_state_alone(name):
    model = net()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    optimizer, _ = build_optimizer(model, OptimConfig(name=name, lr=0.02), 4)
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Forgetful", "after a resume it steps otherwise"),
        ("InGroups", "after a resume it steps otherwise"),
        ("OddState", "weights_only"),
        ("Idle", "stay as they are"),
        ("no_decay", "weight_decay"),
        ("not_an_optimizer", "got list"),
        ("missing", "no function 'missing'"),
    ],
)
def test_an_own_optimizer_that_cannot_train_or_resume_is_refused_first(name, problem):
    with pytest.raises(UserError, match=problem):
        build_optimizer(net(), own(name), 4)


def test_clipping_scales_the_whole_gradient_to_its_norm():
    task = nn.ParameterList([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))])
    learner = Learner(task, torch.optim.SGD(task.parameters(), lr=1.0), clip_norm=0.5)
    learner.step(3 * task[0].sum() + 4 * task[1].sum())
    moved = torch.cat([p.detach() for p in task])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-5)
    assert (moved[3] / moved[0]).item() == pytest.approx(4 / 3)
    learner.clip_norm = 1e3
    learner.step(3 * task[0].sum() + 4 * task[1].sum())
    torch.testing.assert_close(torch.cat([p.detach() for p in task]) - moved,
                               -torch.tensor([3.0, 3, 3, 4, 4]))  # fmt: skip


def test_the_radius_rises_linearly_and_reaches_the_full_eps():
    attack = AttackConfig(eps=0.3, alpha=0.1, radius_warmup=0.3)
    steps = [attack.at(step, 10) for step in range(10)]
    assert [one.eps for one in steps[:3]] == pytest.approx([0.3 * k / 4 for k in (1, 2, 3)])
    assert [one.step_size for one in steps[:3]] == pytest.approx([0.1 * k / 4 for k in (1, 2, 3)])
    assert all(one is attack for one in steps[3:])
    assert AttackConfig().at(0, 10).eps == AttackConfig().eps


def test_attacks_of_the_warm_up_stay_within_the_radius_of_their_step(monkeypatch):
    state, loader = tiny_state(tiny_config({"attack.radius_warmup": 0.5, "mi.weight": 0}))
    longest = []
    attack = Attacker.__call__

    def recorded(self, x, *rest):
        x_adv = attack(self, x, *rest)
        longest.append((x_adv - x).abs().max().item())
        return x_adv

    monkeypatch.setattr(Attacker, "__call__", recorded)
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            state.step(batch)
            state.position.step += 1
        state.position.epoch, state.position.step = epoch + 1, 0
    rising = [0.2 * k / 6 for k in range(1, 6)]
    assert longest == pytest.approx([*rising, *[0.2] * 5], abs=1e-6)


@pytest.mark.slow
def test_a_run_with_adamw_clipping_and_warm_ups_resumes_exactly(tmp_path):
    config = tiny_config({**ALL, "checkpoint.every_steps": 2})
    whole, broken = (RunFolder(tmp_path / name) for name in ("whole", "broken"))
    for folder in (whole, broken):
        folder.path.mkdir()
    train(config, LocalContext(), whole)
    train(config, LocalContext(), broken, until_epoch=1)
    train(config, LocalContext(), broken)
    assert (whole.weights("last").read_bytes()) == broken.weights("last").read_bytes()


@pytest.mark.slow
def test_adamw_clipping_and_warm_ups_do_not_depend_on_the_number_of_workers(tmp_path):
    alone = steps_in_float64(0, 1, ALL, 5)[1]
    for _, weights in run_ranks(steps_in_float64, 2, ALL, 5, tmp_path=tmp_path):
        assert weights.keys() == alone.keys()
        for name, value in weights.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-9, atol=1e-9)
    assert math.isfinite(sum(float(value.double().sum()) for value in alone.values()))
