"""The Wasserstein attack: its projection by the laws of transport, and against solvers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, linprog, minimize

from raymi.attacks.wasserstein import LocalPlans, wasserstein_pgd
from raymi.models.modes import evaluation_mode

KERNELS = [1, 2, 3, 4, 5]


def images(num=3, channels=2, height=4, width=5):
    torch.manual_seed(3)
    x = torch.rand(num, channels, height, width, dtype=torch.float64)
    x[0, 0, 1, 2] = 0.0  # a pixel that has nothing to give
    return x


def random_plan(plans, x, scale):
    return plans.identity(x) + scale * torch.randn_like(plans.identity(x))


def ways(height, width, kernel):
    """(number of the offset, from, to, length) for every way that mass may go, one by one."""
    found = []
    for row in range(height):
        for column in range(width):
            for i in range(kernel):
                for j in range(kernel):
                    to = (row + i - kernel // 2, column + j - kernel // 2)
                    if 0 <= to[0] < height and 0 <= to[1] < width:
                        length = np.hypot(i - kernel // 2, j - kernel // 2)
                        source, target = row * width + column, to[0] * width + to[1]
                        found.append((i * kernel + j, source, target, length))
    return found


@pytest.mark.parametrize("kernel", KERNELS)
def test_received_mass_equals_sent_mass(kernel):
    x = images()
    plans = LocalPlans(4, 5, kernel, like=x)
    plan = torch.rand_like(plans.identity(x)) * plans.allowed
    expected, cost = torch.zeros_like(x).flatten(2), torch.zeros(3, dtype=torch.float64)
    for offset, source, target, length in ways(4, 5, kernel):
        expected[:, :, target] += plan[:, :, offset, source]
        cost += length * plan[:, :, offset, source].sum(1)
    torch.testing.assert_close(plans.arrival(plan), expected.view_as(x))
    torch.testing.assert_close(plans.total_cost(plan), cost)
    assert int(plans.allowed.sum()) == len(ways(4, 5, kernel))
    assert torch.equal(plans.arrival(plans.identity(x)), x)
    assert plans.total_cost(plans.identity(x)).abs().max() == 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_projected_plans_satisfy_the_constraints(kernel, scale):
    x = images()
    plans, budget = LocalPlans(4, 5, kernel, like=x), torch.tensor([0.0, 0.1, 2.0]).double()
    plan = plans.project(random_plan(plans, x, scale), x, budget)
    assert plan.min() >= 0
    assert plan.masked_select(~plans.allowed).abs().sum() == 0, "nothing leaves the image"
    torch.testing.assert_close(plan.sum(2), x.flatten(2), rtol=1e-12, atol=1e-12 * scale)
    assert (plans.total_cost(plan) <= budget + 1e-12 * scale).all()
    torch.testing.assert_close(plans.arrival(plan).sum((1, 2, 3)), x.sum((1, 2, 3)))
    unmoved = plans.arrival(plan[:1])
    torch.testing.assert_close(unmoved, x[:1], rtol=0, atol=1e-12 * scale)  # budget 0


def test_projection_is_idempotent():
    x = images()
    plans, budget = LocalPlans(4, 5, 3, like=x), torch.tensor([0.3, 0.1, 2.0]).double()
    plan = plans.project(random_plan(plans, x, 1.0), x, budget)
    torch.testing.assert_close(plans.project(plan, x, budget), plan, rtol=0, atol=1e-14)


def test_an_active_budget_is_fully_used():
    x = images()
    plans, budget = LocalPlans(4, 5, 3, like=x), torch.tensor([0.3, 0.1, 1e9]).double()
    plan = plans.project(random_plan(plans, x, 1.0), x, budget, iterations=50)
    torch.testing.assert_close(plans.total_cost(plan)[:2], budget[:2], rtol=1e-9, atol=1e-9)
    free = plans.project(random_plan(plans, x, 1.0), x, torch.full((3,), 1e9).double())
    assert (plans.total_cost(free) > budget[1]).all(), "or this test shows nothing"


@pytest.mark.parametrize("budget", [0.02, 0.3, 50.0])
def test_projection_equals_a_quadratic_program_solver(budget):
    x = images(1, 1, 2, 3)
    plans = LocalPlans(2, 3, 3, like=x)
    torch.manual_seed(1)
    aim = random_plan(plans, x, 0.5)
    plan = plans.project(aim, x, torch.tensor([budget]).double(), iterations=60)

    allowed = ways(2, 3, 3)
    wanted = np.array([aim[0, 0, offset, source].item() for offset, source, _, _ in allowed])
    sends = np.array([[source == s for _, s, _, _ in allowed] for source in range(6)], float)
    mass = x.flatten().numpy()
    length = np.array([[way[3] for way in allowed]])
    found = minimize(
        lambda p: ((p - wanted) ** 2).sum() / 2,
        np.full(len(allowed), 0.1),
        jac=lambda p: p - wanted,
        bounds=[(0, None)] * len(allowed),
        constraints=[
            LinearConstraint(sends, mass, mass), LinearConstraint(length, -np.inf, budget),
        ],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert found.success
    ours = np.array([plan[0, 0, offset, source].item() for offset, source, _, _ in allowed])
    np.testing.assert_allclose(ours, found.x, atol=1e-5)


def wasserstein_distance(one, other):
    """Mass times way of the cheapest transport between two images of one channel, any way at all:
    a linear program."""
    height, width = one.shape
    places = np.stack(np.meshgrid(range(height), range(width), indexing="ij"), -1).reshape(-1, 2)
    cost = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    num = len(places)
    sends, arrives = np.kron(np.eye(num), np.ones(num)), np.kron(np.ones(num), np.eye(num))
    equal = np.concatenate([sends, arrives])
    amounts = np.concatenate([one.flatten(), other.flatten()])
    found = linprog(cost.flatten(), A_eq=equal, b_eq=amounts, method="highs")
    assert found.status == 0, found.message
    return found.fun


def test_cost_is_within_the_budget_of_a_linear_program():
    x = images(3, 1, 4, 5)
    plans, budget = LocalPlans(4, 5, 4, like=x), 0.05 * x.sum((1, 2, 3))
    z = plans.arrival(plans.project(random_plan(plans, x, 0.5), x, budget))
    z = z * (x.sum((1, 2, 3)) / z.sum((1, 2, 3))).view(-1, 1, 1, 1)  # equal to the last bit
    distances = [
        wasserstein_distance(a[0].numpy(), b[0].numpy()) for a, b in zip(x, z, strict=True)
    ]
    assert all(0 < d <= b + 1e-9 for d, b in zip(distances, budget.tolist(), strict=True))


def accuracy(model, x, y):
    with evaluation_mode(model), torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def test_the_attack_breaks_more_with_a_larger_budget(model, digits):
    x, y = digits[0][:24], digits[1][:24]
    found = [
        accuracy(model, wasserstein_pgd(model, x, y, eps=eps, steps=12, step_size=0.05), y)
        for eps in (0.0, 0.02, 0.5)
    ]
    assert found[0] == accuracy(model, x, y)
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.2


def test_samples_are_images_independent_of_their_batch(model, digits):
    x, y = digits[0][:6].double(), digits[1][:6]
    model = copy.deepcopy(model).double()
    together = wasserstein_pgd(model, x, y, eps=0.1, steps=5)
    assert together.min() >= 0
    assert together.max() <= 1
    assert not together.requires_grad
    for i in (0, 5):
        alone = wasserstein_pgd(model, x[i : i + 1], y[i : i + 1], eps=0.1, steps=5)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-9)
    assert wasserstein_pgd(model, x[:0], y[:0]).shape == (0, 3, 16, 16)


def test_wasserstein_pgd_keeps_model_and_random_state(model, digits):
    model.train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    wasserstein_pgd(model, digits[0][:4], digits[1][:4], steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
