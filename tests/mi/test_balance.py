"""The MI weight by gradient balance, and losses that carry given gradients at the logits."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from gloo import run_ranks
from shards import shard_of_rank
from torch import nn

from raymi.collectives import Shard
from raymi.mi.balance import balanced_weight, global_norms, gradients_at, with_gradient

RHOS = [0.05, 0.2, 2.0]


def two_gradients(seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, 2, 6, 4, dtype=torch.float64, generator=generator)
    return list(draw[0]), [1e-3 * g for g in draw[1]]


@pytest.mark.parametrize("rho", RHOS)
def test_the_weighted_mi_gradient_has_rho_times_the_norm_of_the_adversarial_one(rho):
    g_adv, g_mi = two_gradients()
    norms = global_norms([g_mi, g_adv], Shard.alone(8))
    weight = balanced_weight(*norms, rho, largest=1e9)
    weighted = torch.cat([weight * g for g in g_mi]).norm()
    torch.testing.assert_close(weighted, rho * torch.cat(g_adv).norm(), rtol=1e-12, atol=0)
    assert not weight.requires_grad


def test_the_weight_is_capped():
    assert balanced_weight(torch.tensor(1e-6), torch.tensor(1.0), 0.2, largest=1000.0) == 1000


@pytest.mark.parametrize(("norm_mi", "norm_adv"), [(0.0, 1.0), (1e-13, 1.0), (0.0, 0.0)])
def test_the_weight_is_zero_where_the_mi_gradient_vanishes(norm_mi, norm_adv):
    weight = balanced_weight(torch.tensor(norm_mi), torch.tensor(norm_adv), 0.2, largest=1e30)
    assert weight == 0


def test_gradients_below_a_trillionth_of_the_other_vanish():
    weight = balanced_weight(torch.tensor(1e-11), torch.tensor(1.0), 0.2, largest=1e30)
    torch.testing.assert_close(weight, torch.tensor(2e10))


def test_nan_gradients_are_not_hidden():
    assert balanced_weight(torch.tensor(torch.nan), torch.tensor(1.0), 0.2, 1000.0).isnan()


def test_norms_of_half_precision_gradients_use_single_precision():
    grads = [torch.full((1000,), 200.0, dtype=torch.float16)]
    (norm,) = global_norms([grads], Shard.alone(8))
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(200 * 1000**0.5)


def norms_on_a_rank(rank, world_size, sizes):
    """Each worker's gradients carry the factor world_size of its share of a mean."""
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    grads = [[world_size * g[own] for g in each] for each in two_gradients()]
    return global_norms(grads, shard_of_rank(sizes)).tolist()


@pytest.mark.parametrize("sizes", [[4, 2], [5, 0, 1]], ids=str)
def test_the_norms_are_over_the_global_batch(sizes, tmp_path):
    expected = [torch.cat(grads).norm().item() for grads in two_gradients()]
    for norms in run_ranks(norms_on_a_rank, len(sizes), sizes, tmp_path=tmp_path):
        assert norms == pytest.approx(expected, rel=1e-12)


def test_carrying_the_gradients_equals_backpropagating_the_losses():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    x, x_adv = torch.randn(2, 6, 5, dtype=torch.float64)
    parameters = list(net.parameters())

    def losses():
        logits = [net(x), net(x_adv)]
        adversarial = logits[1].logsumexp(1).mean()
        return logits, adversarial, (logits[0] * logits[1]).tanh().mean()

    _, adversarial, mi = losses()
    direct = adversarial + 3 * mi
    expected = torch.autograd.grad(direct, parameters)

    logits, adversarial, mi = losses()
    g_adv, g_mi = gradients_at(adversarial, logits), gradients_at(mi, logits)
    value = (adversarial + 3 * mi).detach()
    carried = with_gradient(value, logits, [a + 3 * m for a, m in zip(g_adv, g_mi, strict=True)])
    torch.testing.assert_close(carried, direct, rtol=1e-15, atol=0)
    for mine, theirs in zip(torch.autograd.grad(carried, parameters), expected, strict=True):
        assert_close(mine, theirs, tolerance=1e-12)


def test_a_loss_without_a_graph_has_zero_gradient():
    logits = torch.randn(3, 2, requires_grad=True)
    (grad,) = gradients_at(torch.tensor(1.0), [logits])
    assert torch.equal(grad, torch.zeros(3, 2))
