"""Shares that go through the networks in pieces train as whole ones do, but for BatchNorm."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from gloo import run_ranks
from tiny_runs import steps_in_float64, tiny_config, tiny_run, tiny_state
from torch import nn

from raymi.collectives import Shard
from raymi.models.micro_batches import in_pieces, num_pieces

NORM_FREE = {
    "model.name": "tiny_runs:norm_free_net", "model.width": None, "model.depth": None,
    "mi.hidden": 16, "optim.lr": 0.02, "mi.schedule": "staged",
}  # fmt: skip
"""No BatchNorm in what learns: then pieces change nothing at all."""


@pytest.mark.parametrize(
    ("sizes", "micro_batch", "expected"),
    [([5, 4], None, 1), ([5, 4], 5, 1), ([5, 4], 2, 3), ([4, 0], 1, 4), ([0], 3, 1)],
)
def test_every_worker_has_as_many_pieces_as_the_largest_share_needs(sizes, micro_batch, expected):
    assert num_pieces(max(sizes), micro_batch) == expected


@pytest.mark.parametrize("loss", ["at", "trades", "mart"])
def test_without_batchnorm_pieces_change_nothing(loss):
    settings = NORM_FREE | {"loss.base": loss, "optim.awp": 0.01, "optim.awp_warmup": 0}
    whole, whole_weights = steps_in_float64(0, 1, settings, 6)
    parts, weights = steps_in_float64(0, 1, settings | {"scaling.micro_batch": 10}, 6)
    for one, other in zip(whole, parts, strict=True):
        assert other == pytest.approx(one, rel=1e-9, abs=1e-12)
    for name, weight in whole_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-9, atol=1e-12)


def test_pieces_change_nothing_on_several_workers_some_without_images(tmp_path):
    settings = NORM_FREE | {"data.limit": 202, "optim.batch_size": 60}
    whole, _ = steps_in_float64(0, 1, settings, 6)
    args = (settings | {"scaling.micro_batch": 7}, 6)
    for history, _ in run_ranks(steps_in_float64, 3, *args, tmp_path=tmp_path):
        for one, other in zip(whole, history, strict=True):
            assert other == pytest.approx(one, rel=1e-9, abs=1e-12)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    ).double()


def piece_by_piece(x, y):
    """The slow, obvious form: batch statistics of each piece, one loss, one backward."""
    model = small_net()
    logits = torch.cat([model(piece) for piece in x.split(4)])
    loss = (logits.log_softmax(1).gather(1, y[:, None]).mean() - 1) ** 2
    loss.backward()
    return logits, model


def test_batchnorm_sees_pieces_and_its_running_statistics_follow_each_once():
    x, y = torch.rand(12, 3, 8, 8, dtype=torch.float64), torch.arange(12) % 5
    expected, reference = piece_by_piece(x, y)
    model = small_net()
    logits = in_pieces(model, model, x, Shard.alone(12), 4)
    loss = (logits.log_softmax(1).gather(1, y[:, None]).mean() - 1) ** 2
    loss.backward()
    assert torch.equal(logits, expected)
    for one, other in zip(reference.parameters(), model.parameters(), strict=True):
        assert_close(other.grad, one.grad, tolerance=1e-12)
    for one, other in zip(reference.buffers(), model.buffers(), strict=True):
        assert torch.equal(one, other)
    assert model[1].num_batches_tracked == 3


def test_only_inputs_and_outputs_of_pieces_are_saved_for_backward():
    x, model = torch.rand(12, 3, 8, 8, dtype=torch.float64), small_net()
    held = []

    def note(tensor):
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        in_pieces(model, model, x, Shard.alone(12), 4).sum()
    assert sum(held) <= x.numel(), "the whole network would hold many times as much"


def test_dropout_is_the_same_the_second_time():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Dropout(0.5), nn.Linear(6, 2))
    x = torch.rand(8, 3, 2, 2)
    torch.manual_seed(1)
    logits = in_pieces(model, model, x, Shard.alone(8), 4)
    (grad,) = torch.autograd.grad(logits.sum(), model[1].bias)
    torch.manual_seed(1)
    expected = torch.cat([model(piece) for piece in x.split(4)])
    assert torch.equal(logits, expected)
    (expected_grad,) = torch.autograd.grad(expected.sum(), model[1].bias)
    torch.testing.assert_close(grad, expected_grad)


def test_attributes_that_a_forward_sets_are_set_once():
    """Spectral norm takes a step of its power iteration in every forward in train mode."""

    def net():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
            nn.InstanceNorm2d(4, track_running_stats=True), nn.Flatten(), nn.Linear(144, 5),
        ).double()  # fmt: skip

    x, one, other = torch.rand(12, 3, 8, 8, dtype=torch.float64), net(), net()
    torch.cat([one(piece) for piece in x.split(4)]).square().mean().backward()
    logits = in_pieces(other, other, x, Shard.alone(12), 4)
    other.eval()  # what happens before the backward has no effect on it
    logits.square().mean().backward()
    assert not other.training
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert_close(b.grad, a.grad, tolerance=1e-12)
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


class Scaled(nn.Module):
    """Multiplies by a buffer that each forward changes, as no backward would allow by itself."""

    def __init__(self, copied):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3).double()
        self.copied = copied
        self.register_buffer("scale", torch.ones(1, dtype=torch.float64).expand(3).clone())

    def forward(self, x):
        self.scale.mul_(0.5).add_(x.detach().abs().mean())
        return self.linear(x) * (self.scale.clone() if self.copied else self.scale)


def test_a_buffer_that_a_forward_uses_equals_that_of_its_own_piece():
    x, one, other = torch.rand(12, 4, dtype=torch.float64), Scaled(True), Scaled(False)
    torch.cat([one(piece) for piece in x.split(4)]).square().mean().backward()
    loss = in_pieces(other, other, x, Shard.alone(12), 4).square().mean()
    scale = other.scale
    for _ in range(2):  # also a second time
        (grad,) = torch.autograd.grad(loss, other.linear.weight, retain_graph=True)
        assert_close(grad, one.linear.weight.grad, tolerance=1e-12)
    assert other.scale is scale
    assert torch.equal(other.scale, one.scale)


@pytest.mark.parametrize("schedule", ["joint", "staged"])
def test_pieces_train_with_batchnorm_and_every_option(schedule, tmp_path):
    settings = {
        "mi.schedule": schedule, "scaling.micro_batch": 9, "optim.awp": 0.01, "loss.base": "trades",
        "scaling.precision": "bf16", "scaling.channels_last": True, "optim.ema": 0.9,
    }  # fmt: skip
    finite = run_ranks(one_epoch, 2, settings, tmp_path=tmp_path)
    assert finite == [True, True]


def one_epoch(rank, world_size, settings):
    state, loader = tiny_state(tiny_config(settings))
    metrics = [state.step(batch) for batch in loader.epoch(0)]
    finite = all(torch.stack(list(m.values())).isfinite().all() for m in metrics)
    return bool(finite) and not state.modules_not_finite()


def test_a_step_with_pieces_attacks_the_same_samples():
    batch = None
    x_adv = []
    for micro_batch in (None, 5):
        state, loader = tiny_state(tiny_config({"scaling.micro_batch": micro_batch}))
        batch = next(iter(loader.epoch(0)))
        x_adv.append(state.attack(batch.x, batch.y, batch.shard))
    whole, parts = x_adv
    differ = (whole - parts).abs() > 1e-6  # rounding may turn a sign of PGD here and there
    assert differ.double().mean() < 0.01


def test_no_pass_of_a_run_is_larger_than_a_piece(tmp_path, monkeypatch):
    """Training, validation with its MI, and the test; outputs (b, K) are small."""
    seen = set()
    forward = torch.nn.Conv2d.forward

    def noting(self, x):
        if x.shape[-1] > 1:
            seen.add(len(x))
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", noting)
    settings = {"scaling.micro_batch": 9, "optim.epochs": 1, "mi.schedule": "staged"}
    assert tiny_run(0, 1, tmp_path, settings, []).finished
    assert max(seen) == 9


def test_an_order_of_batches_for_the_running_statistics_is_refused():
    with pytest.raises(ValueError, match=r"micro_batch needs loss\.batchnorm=adversarial"):
        tiny_config({"scaling.micro_batch": 4, "loss.batchnorm": "mix"})
