"""Training with an attack of the user in place of PGD."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import tiny_config, tiny_state

from raymi.attacks.projections import project
from raymi.commands.preflight import input_problems
from raymi.config import Config
from raymi.errors import UserError

GIVEN = []


def fgsm(model, x, y, *, eps, norm, generator):
    GIVEN.append((model.training, eps, norm))
    start = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).requires_grad_()
    torch.nn.functional.cross_entropy(model(start), y).backward()  # fills gradients of weights, too
    torch.rand(3)
    return project(x, start.detach() + eps * start.grad.sign(), eps, norm)


def image(model, x, y, *, eps, norm, generator):
    return x


def far(model, x, y, *, eps, norm, generator):
    return 1 - x


def learn(model, x, y, *, eps, norm, generator):
    with torch.no_grad():
        next(model.parameters()).add_(1)
    return x


def first_step(name, **settings):
    """The state after a step on the first batch, the batch, and its adversarial images."""
    state, loader = tiny_state(tiny_config({"attack.name": name, "mi.weight": 0, **settings}))
    batch = next(iter(loader.epoch(0)))
    before = torch.random.get_rng_state()
    x_adv = state.attack(batch.x, batch.y, batch.shard)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in state.model.parameters())
    state.step(batch)
    return state, batch, x_adv


def test_the_step_learns_from_the_images_of_the_function():
    state, batch, x_adv = first_step("test_user_attacker:fgsm")
    assert GIVEN[-1] == (False, 0.2, "linf")
    assert state.model.training
    assert 0.1 < float((x_adv - batch.x).abs().max()) <= 0.2 + 1e-6
    _, _, again = first_step("test_user_attacker:fgsm")
    assert torch.equal(x_adv, again), "the generator is seeded by the step"
    pieces = first_step("test_user_attacker:fgsm", **{"scaling.micro_batch": 20})[2]
    assert pieces.shape == x_adv.shape


def test_an_attack_without_effect_is_undefended_training():
    own = first_step("test_user_attacker:image")[0]
    none = first_step("pgd", **{"attack.steps": 0, "attack.start": "image"})[0]
    for name, value in none.model.state_dict().items():
        assert torch.equal(value, own.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("far", "project x_adv into the ball"),
        ("learn", "changed parameters: let it change a copy"),
        ("missing", "no function 'missing'"),
    ],
)
def test_wrong_attacks_stop_the_training(name, message):
    with pytest.raises(UserError, match=message):
        first_step(f"test_user_attacker:{name}")


def test_attacks_are_checked_before_a_run():
    config = tiny_config({"attack.name": "test_user_attacker:first_step"})
    (problem,) = input_problems(config, new_run=False)
    assert "the function is called with model, x, y, eps=, norm= and generator=" in problem
    with pytest.raises(ValueError, match="expected pgd or module:function, got 'fgsm'"):
        Config.model_validate({"data": {"name": "digits"}, "attack": {"name": "fgsm"}})
