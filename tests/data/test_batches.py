from __future__ import annotations

import pytest
import torch

from raymi.data.batches import epoch_order, global_batch, share, share_sizes, steps_per_epoch


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
