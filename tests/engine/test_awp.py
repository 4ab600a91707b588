"""Adversarial weight perturbation: where the weights go, and that they come back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gloo import run_ranks
from tiny_runs import same, steps_in_float64, tiny_config, tiny_state

from raymi.engine.awp import AdversarialWeightPerturbation

PERTURBED = {"optim.awp": 0.02, "optim.awp_warmup": 0}


def test_each_weight_moves_along_its_gradient_by_gamma_of_its_norm_and_comes_back():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def ascend():
        torch.manual_seed(0)
        for p in model.parameters():
            p.grad = torch.randn_like(p)

    with AdversarialWeightPerturbation(model, 0.1)(ascend):
        for name, p in model.named_parameters():
            moved = p.detach() - before[name]
            if p.dim() == 1:
                assert torch.equal(p, before[name]), name
                continue
            assert moved.norm() == pytest.approx(0.1 * before[name].norm().item(), rel=1e-4)
            cosine = torch.cosine_similarity(moved.flatten(), p.grad.flatten(), dim=0)
            assert cosine == pytest.approx(1.0, abs=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_step_descends_along_the_gradient_at_the_perturbed_weights():
    state, loader = tiny_state(tiny_config({**PERTURBED, "mi.weight": 0, "optim.weight_decay": 0}))
    twin, _ = tiny_state(tiny_config({"mi.weight": 0, "optim.weight_decay": 0}))
    batch = next(iter(loader.epoch(0)))
    x_adv = twin.attack(batch.x, batch.y, batch.shard)
    weights = [p for p in twin.model.parameters() if p.dim() > 1]

    def loss():
        return F.cross_entropy(twin.model(x_adv), batch.y)

    grads = torch.autograd.grad(loss(), weights)
    old = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for p, g in zip(weights, grads, strict=True):
            p += 0.02 * p.norm() / g.norm() * g
    perturbed = dict(
        zip(
            [n for n, _ in twin.model.named_parameters()],
            torch.autograd.grad(loss(), list(twin.model.parameters())),
            strict=True,
        )
    )
    with torch.no_grad():
        for p, o in zip(weights, old, strict=True):
            p.copy_(o)
    state.step(batch)
    lr = state.config.optim.lr / 10  # where the one-cycle schedule starts
    for (name, new), start in zip(
        state.model.named_parameters(), twin.model.parameters(), strict=True
    ):
        torch.testing.assert_close(
            (start - new).detach() / lr, perturbed[name], rtol=1e-3, atol=1e-4, msg=name
        )


def test_running_statistics_follow_the_one_forward_that_counts():
    state, loader = tiny_state(tiny_config({**PERTURBED, "mi.weight": 0}))
    for count, batch in enumerate(loader.epoch(0), start=1):
        state.step(batch)
        tracked = {
            k: int(v) for k, v in state.model.state_dict().items() if k.endswith("batches_tracked")
        }
        assert set(tracked.values()) == {count}


def test_weights_stay_unchanged_during_the_warmup():
    weights = []
    for settings in ({}, {**PERTURBED, "optim.awp_warmup": 0.5}):
        state, loader = tiny_state(tiny_config(settings))
        for batch in loader.epoch(0):
            state.step(batch)
        weights.append(dict(state.model.state_dict()))
    assert same(*weights)
    state.position.epoch = 1
    twin, _ = tiny_state(tiny_config({}))
    twin.load_state_dict(state.state_dict())
    for one in (state, twin):
        one.step(next(iter(loader.epoch(1))))
    assert not same(dict(state.model.state_dict()), dict(twin.model.state_dict()))


@pytest.mark.parametrize("base", [pytest.param("at", marks=pytest.mark.exhaustive), "trades"])
def test_workers_apply_the_same_perturbation(base, tmp_path):
    settings = {**PERTURBED, "loss.base": base}
    alone = steps_in_float64(0, 1, settings, 6)
    for history, weights in run_ranks(steps_in_float64, 2, settings, 6, tmp_path=tmp_path):
        for mine, theirs in zip(history, alone[0], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)
        for name, value in weights.items():
            torch.testing.assert_close(value, alone[1][name], rtol=1e-9, atol=1e-10, msg=name)
