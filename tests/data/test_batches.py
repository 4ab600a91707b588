from __future__ import annotations

import pytest
import torch

from raymi.data.batches import (
    epoch_order,
    generated_slots,
    global_batch,
    mixed_order,
    share,
    share_sizes,
    steps_per_epoch,
)


def test_an_epoch_visits_every_sample_once():
    order = epoch_order(1000, seed=3, epoch=7)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(1000))


def test_the_order_is_a_function_of_seed_and_epoch_only():
    order = epoch_order(100, seed=3, epoch=7)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(order, epoch_order(100, seed=3, epoch=7))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(order, epoch_order(100, seed=3, epoch=8))
    assert not torch.equal(order, epoch_order(100, seed=4, epoch=7))


@pytest.mark.parametrize("num_samples", [1, 9, 10, 11, 20])
def test_batches_partition_the_epoch_without_padding_or_dropping(num_samples):
    order = epoch_order(num_samples, seed=0, epoch=0)
    steps = steps_per_epoch(num_samples, 10)
    batches = [global_batch(order, 10, step) for step in range(steps)]
    assert torch.equal(torch.cat(batches), order)
    assert all(len(batch) == 10 for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= 10


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("batch_size", [0, 1, 3, 4, 10, 64])
def test_shares_partition_the_batch_in_order(batch_size, world_size):
    batch = epoch_order(batch_size, seed=1, epoch=1)
    shares = [share(batch, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat(shares), batch)
    sizes = [len(part) for part in shares]
    assert sizes == share_sizes(batch_size, world_size)
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_share_sizes_literals():
    assert share_sizes(10, 4) == [3, 3, 2, 2]
    assert share_sizes(2, 4) == [1, 1, 0, 0]


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 32, 64, 100, 250])  # last: 1, 2, 5, 4, 36, 100
def test_batches_and_workers_have_their_share_of_generated_images(batch_size, fraction):
    slots = generated_slots(100, batch_size, fraction)
    for start in range(0, 100, batch_size):
        batch = slots[start : start + batch_size]
        count = round(fraction * len(batch))
        assert int(batch.sum()) == count
        for world_size in (2, 3, 4):
            for rank in range(world_size):
                part = share(batch, rank, world_size)
                assert abs(int(part.sum()) - count * len(part) / len(batch)) < 1


def test_share_of_generated_images_literals():
    assert generated_slots(13, 10, 0.7).int().tolist() == [0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1]
    assert generated_slots(7, 5, 0.5).int().tolist() == [0, 0, 1, 0, 1, 0, 1]  # 2.5 becomes 2


@pytest.mark.parametrize(("num_samples", "num_generated"), [(50, 400), (50, 7), (7, 50), (1, 1)])
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_visits_of_images_differ_by_at_most_one(num_samples, num_generated, fraction):
    visits = torch.zeros(num_samples + num_generated, dtype=torch.int64)
    for epoch in range(12):
        order = mixed_order(num_samples, num_generated, fraction, 8, seed=1, epoch=epoch)
        assert len(order) == num_samples
        visits += torch.bincount(order, minlength=len(visits))
        for kind in (visits[:num_samples], visits[num_samples:]):
            assert kind.max() - kind.min() <= 1


def test_mixed_epochs_continue_the_sequences_of_both_kinds():
    epochs = [mixed_order(30, 20, 0.5, 10, seed=2, epoch=e) for e in range(8)]
    row = torch.cat(epochs)
    real, made = row[row < 30], row[row >= 30] - 30
    expected = [epoch_order(30, seed=2, epoch=number) for number in range(4)]
    assert torch.equal(real, torch.cat(expected))  # 15 of 30 in each epoch
    passes = made.view(6, 20)
    assert all(one.sort().values.tolist() == list(range(20)) for one in passes)
    assert not torch.equal(passes[0], passes[1])


def test_a_mixed_order_is_a_function_of_seed_and_epoch_only():
    orders = [mixed_order(90, 300, 0.7, 8, seed, epoch) for seed in (0, 1) for epoch in (0, 5)]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(orders[3], mixed_order(90, 300, 0.7, 8, seed=1, epoch=5))
    assert torch.equal(before, torch.get_rng_state())
    assert len({tuple(order.tolist()) for order in orders}) == 4


@pytest.mark.parametrize("epoch", [0, 1, 6])
def test_fraction_0_gives_the_plain_order(epoch):
    assert torch.equal(mixed_order(90, 40, 0.0, 8, 3, epoch), epoch_order(90, 3, epoch))
