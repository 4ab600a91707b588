"""AT, TRADES and MART against their definitions and the authors' values."""

from __future__ import annotations

import math

import pytest
import torch
from closeness import assert_close
from golden_values import NETS, TinyNet, golden
from shards import shards_without_processes

from raymi.attacks.pgd import pgd
from raymi.collectives import Shard
from raymi.losses.at import AT
from raymi.losses.mart import MART
from raymi.losses.trades import TRADES

SIX = Shard.alone(6)


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(3)
    logits, logits_adv = 2 * torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    return logits, logits_adv, y


def naive_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def naive_losses(logits, logits_adv, y, beta, smoothing):
    """AT, TRADES and MART by loops over samples and classes."""
    p, q = logits.softmax(1).tolist(), logits_adv.softmax(1).tolist()
    at = trades = mart = 0.0
    for p_i, q_i, label in zip(p, q, y.tolist(), strict=True):
        target = [smoothing / len(q_i) + (1 - smoothing) * (k == label) for k in range(len(q_i))]
        at -= sum(t * math.log(b) for t, b in zip(target, q_i, strict=True))
        trades += -math.log(p_i[label]) + beta * naive_kl(p_i, q_i)
        runner_up = max(b for k, b in enumerate(q_i) if k != label)
        boosted = -math.log(q_i[label]) - math.log(1.0001 - runner_up)
        mart += boosted + beta * naive_kl(p_i, q_i) * (1.0000001 - p_i[label])
    return at / len(y), trades / len(y), mart / len(y)


def test_losses_equal_loops_over_samples_and_classes(outputs):
    logits, logits_adv, y = outputs
    at, trades, mart = naive_losses(logits, logits_adv, y, beta=3.5, smoothing=0.1)
    for loss, expected in (
        (AT(label_smoothing=0.1), at),
        (TRADES(beta=3.5), trades),
        (MART(beta=3.5), mart),
    ):
        computed = loss(logits, logits_adv, y, SIX).item()
        assert computed == pytest.approx(expected, rel=1e-12)


def test_gradients_equal_those_of_finite_differences(outputs):
    logits, logits_adv, y = (t.clone() for t in outputs)
    logits.requires_grad_()
    logits_adv.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: AT()(logits, z, y, SIX), (logits_adv,))
    for loss in (TRADES(), MART()):
        assert torch.autograd.gradcheck(
            lambda a, b, loss=loss: loss(a, b, y, SIX), (logits, logits_adv)
        )


@pytest.mark.parametrize("sizes", [[3, 3], [4, 2], [6, 0], [2, 1, 3]], ids=str)
def test_the_mean_over_workers_is_the_loss_of_the_global_batch(outputs, sizes):
    logits, logits_adv, y = outputs
    shares = list(zip(logits.split(sizes), logits_adv.split(sizes), y.split(sizes), strict=True))
    for loss in (AT(), TRADES(), MART()):
        whole = loss(logits, logits_adv, y, SIX)
        parts = [
            loss(*share, shard)
            for share, shard in zip(shares, shards_without_processes(sizes), strict=True)
        ]
        assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-12)


def test_losses_of_equal_outputs_are_cross_entropies(outputs):
    logits, _, y = outputs
    ce = torch.nn.functional.cross_entropy(logits, y)
    assert torch.equal(AT()(logits, logits, y, SIX), ce)
    torch.testing.assert_close(TRADES()(logits, logits, y, SIX), ce)


@pytest.mark.parametrize("loss", [TRADES(), MART()], ids=["trades", "mart"])
@pytest.mark.parametrize("swapped", [False, True], ids=["clean", "adversarial"])
def test_gradients_are_finite_where_a_class_has_probability_zero(loss, swapped):
    certain = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)  # softmax underflows to 0
    doubtful = torch.tensor([[0.1, 0.2, -0.1]], requires_grad=True)
    pair = (doubtful, certain) if swapped else (certain, doubtful)
    for label in range(3):
        value = loss(*pair, torch.tensor([label]), Shard.alone(1))
        grads = torch.autograd.grad(value, pair)
        assert value.isfinite()
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("net_of", NETS)
def test_at_and_mart_reproduce_the_reference_values(net_of):
    values = golden(net_of)
    net = TinyNet(values).train()
    y = values["y"]
    logits, logits_adv = net(values["x"]), net(values["x_adv"])
    assert_close(AT()(logits, logits_adv, y, SIX), values["ce_adv"])
    for beta in (5, 6):
        total = MART(beta=beta)(logits, logits_adv, y, SIX)
        assert_close(total, values[f"mart_total_beta{beta}"])
    (grad,) = torch.autograd.grad(total, net.fc.weight)
    assert_close(grad, values["mart_grad_fc_weight"])


LINF = {"eps": 0.031, "alpha": 0.003, "steps": 10}
L2 = {"eps": 0.5, "alpha": 2 * 0.5 / 5, "steps": 5, "norm": "l2", "projection": "box-first"}


@pytest.mark.parametrize("net_of", NETS)
@pytest.mark.parametrize(
    ("beta", "stored", "attack", "noise"),
    [(1, "{}_beta1", LINF, "draw1"), (6, "{}_beta6", LINF, "draw1"), (1, "l2_{}", L2, "draw2")],
    ids=["linf-beta-1", "linf-beta-6", "l2"],
)
def test_trades_and_its_attack_reproduce_the_reference_values(net_of, beta, stored, attack, noise):
    values = golden(net_of)
    net, x, y = TinyNet(values).train(), values["x"], values["y"]
    start = x + golden("start_noise")[noise]
    x_adv = pgd(net, x, y, **attack, objective="kl", start=start)
    logits, logits_adv = net(x), net(x_adv)
    total = TRADES(beta=beta)(logits, logits_adv, y, SIX)
    assert_close(total, values["trades_" + stored.format("total")])
    robust = total - AT()(logits, logits, y, SIX)
    assert_close(robust, values["trades_" + stored.format("robust")])
    if attack is LINF:
        (grad,) = torch.autograd.grad(total, net.fc.weight)
        assert_close(grad, values[f"trades_grad_fc_weight_beta{beta}"])
