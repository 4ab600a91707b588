"""MALT: order of the targets, and its answers on linear networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raymi.attacks.catalogue import Threat, find_attack
from raymi.attacks.execution import Batch, run_attack
from raymi.attacks.malt import sorted_targets

K, DUAL = 6, {"linf": 1, "l2": 2}


@pytest.fixture
def linear():
    """A linear network with classes of different slopes, which are equal for grey images."""
    torch.manual_seed(3)
    layer = nn.Linear(3 * 16, K)
    with torch.no_grad():
        layer.weight *= torch.linspace(1, 2, K)[:, None]
        layer.bias.copy_(-0.5 * layer.weight.sum(1))
    return nn.Sequential(nn.Flatten(), layer)


def images(model, num=40):
    """Images near grey, and the classes that the model gives them."""
    x = 0.5 + 0.05 * torch.randn(num, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


def distances(model, x, y, norm):
    """Distances of each image to the boundary of each class, one at a time."""
    weight, found = model[1].weight, torch.full((len(x), K), torch.inf)
    for i in range(len(x)):
        logits = model(x[i : i + 1])[0]
        for t in range(K):
            if t != y[i]:
                slope = (weight[y[i]] - weight[t]).norm(p=DUAL[norm])
                found[i, t] = ((logits[y[i]] - logits[t]) / slope).item()
    return found


@pytest.mark.parametrize("norm", DUAL)
def test_targets_are_sorted_by_their_distance_in_the_dual_norm(norm, linear):
    x, y = images(linear)
    expected = distances(linear, x, y, norm).argsort(1)[:, : K - 1]
    found = sorted_targets(linear, x, y, norm, candidates=100)
    assert torch.equal(found, expected)
    by_logit = linear(x).scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    assert not torch.equal(found, by_logit[:, : K - 1]), "the order of APGD's targets is another"


def test_candidates_are_the_classes_of_the_largest_logits(linear):
    x, y = images(linear)
    found = sorted_targets(linear, x, y, "linf", candidates=2)
    others = linear(x).scatter(1, y[:, None], -torch.inf)
    assert torch.equal(found.sort(1).values, others.topk(2).indices.sort(1).values)


@pytest.mark.parametrize("norm", DUAL)
def test_on_a_linear_network_all_samples_within_reach_are_broken_by_their_first_target(
    norm, linear
):
    x, y = images(linear)
    reach = distances(linear, x, y, norm).min(1).values
    eps = reach.median().item()
    attack = find_attack("malt")
    batch = Batch(x, y, torch.arange(len(x)), 7)
    clear = (reach - eps).abs() > 1e-3 * eps
    one = attack.function.func(*attack.function.args, linear, batch, Threat(norm, eps), targets=1,
                               candidates=100, steps=100)  # fmt: skip
    broken = linear(one).argmax(1) != y
    assert torch.equal(broken[clear], (reach < eps)[clear])
    assert 10 < int(broken.sum()) < 30
    assert torch.equal(
        run_attack(attack, linear, batch, Threat(norm, eps)).broken[clear], broken[clear]
    )
