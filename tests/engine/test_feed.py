"""Training batches are a function of seed, epoch and step, never of the workers."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import tiny_config, tiny_splits

from raymi.engine.feed import Feed


@pytest.fixture(scope="module")
def images():
    return tiny_splits(tiny_config()).train


def feed(images, rank=0, world_size=1, **settings):
    return Feed(images, tiny_config({"data.flip": True, **settings}), rank, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [44, 60, 89])  # the last batches have 4, 0 and 2
def test_the_workers_shares_are_the_global_batches_and_these_the_epoch(
    images, world_size, batch_size
):
    settings = {"optim.batch_size": batch_size}
    whole = list(feed(images, **settings).epoch(1))
    workers = [list(feed(images, r, world_size, **settings).epoch(1)) for r in range(world_size)]
    assert len(whole) == feed(images, **settings).steps_per_epoch == -(-180 // batch_size)
    for one, *shares in zip(whole, *workers, strict=True):
        for name in ("x", "y", "sample"):
            together = torch.cat([getattr(share, name) for share in shares])
            assert torch.equal(together, getattr(one, name))
        sizes = [len(share.x) for share in shares]
        assert all(share.sizes == sizes for share in shares)
    samples = torch.cat([batch.sample for batch in whole])
    assert torch.equal(samples.sort().values, torch.arange(180))


def test_an_epoch_continues_from_any_step_as_if_never_left(images):
    whole, rest = list(feed(images).epoch(3)), list(feed(images).epoch(3, first_step=2))
    assert len(rest) == len(whole) - 2
    for expected, batch in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected[:3], batch[:3], strict=True))


def test_order_and_augmentation_change_with_epoch_and_seed(images):
    first = next(feed(images).epoch(0))
    for other in (next(feed(images).epoch(1)), next(feed(images, seed=1).epoch(0))):
        assert not torch.equal(first.sample, other.sample)

    def augmented(epoch):
        batches = list(feed(images).epoch(epoch))
        order = torch.cat([b.sample for b in batches]).argsort()
        return torch.cat([b.x for b in batches])[order]

    same = (augmented(0) == augmented(1)).flatten(1).all(1).float().mean()
    assert same < 0.5


def test_images_are_in_the_unit_interval_and_labels_are_theirs(images):
    batch = next(feed(images, **{"data.crop_padding": 0, "data.flip": False}).epoch(0))
    assert torch.equal(batch.x, images.images[batch.sample].float() / 255)
    assert torch.equal(batch.y, images.labels[batch.sample])
    assert batch.x.max() == 1


def test_channels_last_changes_the_memory_format_alone(images):
    plain = next(feed(images).epoch(0)).x
    last = next(feed(images, **{"scaling.channels_last": True}).epoch(0)).x
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)
