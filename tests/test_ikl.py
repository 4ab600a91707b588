"""IKL against its printed form, and its class weights over epochs, workers and a resume."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close
from gloo import run_ranks
from shards import shard_of_rank, shards_without_processes
from tiny_runs import same, tiny_run

from raymi.collectives import Collectives, Shard
from raymi.losses.ikl import IKL
from raymi.runs.checkpoint import load_checkpoint
from raymi.runs.run_folder import RunFolder

NUM, CLASSES = 7, 4
SEVEN = Shard.alone(NUM)


def outputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    pair = 2 * torch.randn(2, NUM, CLASSES, dtype=torch.float64, generator=generator)
    y = torch.tensor([0, 1, 0, 3, 1, 0, 1])  # no sample of class 2
    return *(z.requires_grad_() for z in pair.unbind()), y


def printed(z, z_adv, y, weights, *, alpha, beta):
    """The loss by loops over samples and pairs of classes."""
    total = torch.zeros((), dtype=z.dtype)
    for one, other, label in zip(z, z_adv, y.tolist(), strict=True):
        w, p = weights[label], one.detach().softmax(dim=0)
        total = total - one.log_softmax(dim=0)[label]
        total = total - alpha * (p * other.log_softmax(dim=0)).sum()
        for j in range(CLASSES):
            for k in range(CLASSES):
                apart = (one[j] - one[k]) - (other[j] - other[k])
                total = total + beta / 4 * w[j] * w[k] * apart**2
    return total / len(y)


def after_an_epoch(settings=None):
    """A loss with weights of an epoch, and these weights by a loop."""
    loss, expected = IKL(**settings or {}), torch.full((CLASSES, CLASSES), 1 / CLASSES)
    expected = expected.double()
    z, z_adv, y = (t.detach() for t in outputs(1))
    for half in (slice(3), slice(3, None)):
        loss.observe(z[half], z_adv[half], y[half], Shard.alone(len(y[half])))
    loss.end_epoch(Collectives())
    for label in set(y.tolist()):
        expected[label] = (z[y == label] / loss.settings.class_temperature).softmax(1).mean(0)
    return loss, expected


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_loss_and_its_gradients_equal_the_printed_form(epochs):
    settings = {"soft_weight": 3.0, "beta": 7.0, "class_temperature": 2.0}
    loss, weights = after_an_epoch(settings)
    if epochs == 0:
        loss, weights = IKL(**settings), torch.full((CLASSES, CLASSES), 1 / CLASSES)
    z, z_adv, y = outputs()
    computed, expected = loss(z, z_adv, y, SEVEN), printed(z, z_adv, y, weights, alpha=3, beta=7)
    assert_close(computed, expected, tolerance=1e-12)
    grads = zip(
        *(torch.autograd.grad(one, [z, z_adv]) for one in (computed, expected)), strict=True
    )
    for mine, theirs in grads:
        assert_close(mine, theirs, tolerance=1e-12)


def test_equal_outputs_leave_cross_entropy_and_entropy():
    z, _, y = outputs()
    p = z.detach().softmax(dim=1)
    expected = F.cross_entropy(z, y) - 4 * (p * p.log()).sum(dim=1).mean()
    assert_close(after_an_epoch()[0](z, z, y, SEVEN), expected, tolerance=1e-12)


@pytest.mark.parametrize("sizes", [[4, 3], [7, 0], [2, 1, 4]], ids=str)
def test_the_mean_over_workers_is_the_loss_of_the_global_batch(sizes):
    loss, (z, z_adv, y) = after_an_epoch()[0], outputs()
    parts = zip(z.split(sizes), z_adv.split(sizes), y.split(sizes), strict=True)
    shards = shards_without_processes(sizes)
    mean = torch.stack([loss(*part, shard) for part, shard in zip(parts, shards, strict=True)])
    assert_close(mean.mean(), loss(z, z_adv, y, SEVEN), tolerance=1e-12)


def weights_of_a_rank(rank, world_size, sizes):
    loss, shard = IKL(), shard_of_rank(sizes)
    z, z_adv, y = (t.detach()[shard.index] for t in outputs())
    for _ in range(2):
        loss.observe(z, z_adv, y, shard)
    loss.end_epoch(shard.group)
    return loss.state_dict()["weights"]


@pytest.mark.parametrize("sizes", [[4, 3], [5, 0, 2]], ids=str)
def test_class_weights_count_the_samples_of_all_workers(sizes, tmp_path):
    expected = weights_of_a_rank(0, 1, [NUM])
    for weights in run_ranks(weights_of_a_rank, len(sizes), sizes, tmp_path=tmp_path):
        assert_close(weights, expected, tolerance=1e-12)


def test_a_stopped_run_ends_with_the_same_bits(tmp_path):
    settings = {"loss.base": "ikl", "mi.weight": 0, "optim.awp": 0.01, "optim.awp_warmup": 0}
    checkpoints = []
    for name, stops in (("whole", []), ("stopped", [2, 5])):
        folder = tmp_path / name
        assert tiny_run(0, 1, folder, settings, stops).finished
        checkpoints.append(load_checkpoint(RunFolder(folder).checkpoints))
    whole, stopped = checkpoints
    assert whole["terms"]["loss"]["weights"].shape == (10, 10)
    for part in ("model", "terms", "best"):
        assert same(whole[part], stopped[part]), part
