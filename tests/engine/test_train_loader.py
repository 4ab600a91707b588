"""Training batches are a function of seed, epoch and step, never of the workers."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import pytest
import torch
from tiny_runs import tiny_config, tiny_splits

from raymi.collectives import Collectives
from raymi.data import load_splits
from raymi.engine.train_loader import TrainLoader
from raymi.errors import UserError


@pytest.fixture(scope="module")
def images():
    return tiny_splits(tiny_config()).train


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """50 random images from a real .npz file."""
    path = tmp_path_factory.mktemp("generated") / "made.npz"
    image = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.savez(path, image=image, label=np.arange(50) % 10)
    return load_splits("digits", generated=path).generated


def loader(images, rank=0, world_size=1, generated=None, **settings):
    config = tiny_config({"data.flip": True, **settings})
    group = Collectives()
    group.rank, group.world_size = rank, world_size
    return TrainLoader(images, config, group, generated)


@pytest.fixture(params=["real", "mixed"])
def mixed_in(request, generated):
    """The generated images, or none."""
    return generated if request.param == "mixed" else None


def assert_equal(expected, batch):
    assert torch.equal(expected.x, batch.x)
    assert torch.equal(expected.y, batch.y)
    assert torch.equal(expected.shard.index, batch.shard.index)
    assert (expected.shard.sizes, expected.shard.key) == (batch.shard.sizes, batch.shard.key)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [44, 60, 89])  # the last batches have 4, 0 and 2
def test_the_workers_shares_are_the_global_batches_and_these_the_epoch(
    images, mixed_in, world_size, batch_size
):
    settings = {"optim.batch_size": batch_size, "generated": mixed_in}
    whole = list(loader(images, **settings).epoch(1))
    workers = [list(loader(images, r, world_size, **settings).epoch(1)) for r in range(world_size)]
    assert len(whole) == loader(images, **settings).steps_per_epoch == -(-180 // batch_size)
    for one, *shares in zip(whole, *workers, strict=True):
        for value in (attrgetter("x"), attrgetter("y"), attrgetter("shard.index")):
            assert torch.equal(torch.cat([value(share) for share in shares]), value(one))
        sizes = tuple(len(share.x) for share in shares)
        assert all(share.shard.sizes == sizes for share in shares)
        assert {share.shard.key for share in shares} == {one.shard.key}
    samples = torch.cat([batch.shard.index for batch in whole])
    assert len(samples) == 180
    if mixed_in is None:
        assert torch.equal(samples.sort().values, torch.arange(180))


def test_an_epoch_continues_from_any_step_as_if_never_left(images, mixed_in):
    whole = list(loader(images, generated=mixed_in).epoch(3))
    rest = list(loader(images, generated=mixed_in).epoch(3, first_step=2))
    assert len(rest) == len(whole) - 2
    for expected, batch in zip(whole[2:], rest, strict=True):
        assert_equal(expected, batch)


@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.7, [31, 31, 31, 31, 3]), (0.1, [4, 4, 4, 4, 0])]
)
def test_each_batch_has_its_share_of_generated_images(images, generated, fraction, counts):
    settings = {"data.generated_fraction": fraction, "generated": generated}
    for epoch in range(3):
        batches = list(loader(images, **settings).epoch(epoch))
        assert [len(batch.x) for batch in batches] == [44, 44, 44, 44, 4]
        assert [int((batch.shard.index >= 180).sum()) for batch in batches] == counts


def test_over_epochs_all_images_of_a_kind_are_used_equally_often(images, generated):
    samples = [
        b.shard.index
        for epoch in range(7)
        for b in loader(images, generated=generated).epoch(epoch)
    ]
    visits = torch.bincount(torch.cat(samples), minlength=230)
    assert len(visits) == 230
    assert visits[:180].unique().tolist() == [2, 3]  # 7 * 53 of 180
    assert visits[180:].unique().tolist() == [17, 18]  # 7 * 127 of 50


def test_without_a_share_of_generated_images_the_batches_are_the_plain_ones(images, generated):
    for epoch in range(2):
        plain = loader(images).epoch(epoch)
        mixed = loader(images, generated=generated, **{"data.generated_fraction": 0}).epoch(epoch)
        for expected, batch in zip(plain, mixed, strict=True):
            assert_equal(expected, batch)


def test_the_plain_order_has_known_values(images):
    batch = next(loader(images).epoch(1))
    assert batch.shard.index[:8].tolist() == [79, 20, 36, 30, 130, 66, 100, 161]


def test_sample_n_plus_k_is_the_generated_image_k(images, generated):
    settings = {"data.crop_padding": 0, "data.flip": False}
    pixels = torch.cat([images.images, generated.images]).float() / 255
    labels = torch.cat([images.labels, generated.labels])
    for batch in loader(images, generated=generated, **settings).epoch(0):
        assert torch.equal(batch.x, pixels[batch.shard.index])
        assert torch.equal(batch.y, labels[batch.shard.index])


def test_order_and_augmentation_change_with_epoch_and_seed(images):
    first = next(loader(images).epoch(0))
    for other in (next(loader(images).epoch(1)), next(loader(images, seed=1).epoch(0))):
        assert not torch.equal(first.shard.index, other.shard.index)

    def augmented(epoch):
        batches = list(loader(images).epoch(epoch))
        order = torch.cat([b.shard.index for b in batches]).argsort()
        return torch.cat([b.x for b in batches])[order]

    same = (augmented(0) == augmented(1)).flatten(1).all(1).float().mean()
    assert same < 0.5


def test_images_are_in_the_unit_interval_and_labels_are_theirs(images):
    batch = next(loader(images, **{"data.crop_padding": 0, "data.flip": False}).epoch(0))
    assert torch.equal(batch.x, images.images[batch.shard.index].float() / 255)
    assert torch.equal(batch.y, images.labels[batch.shard.index])
    assert batch.x.max() == 1


def test_channels_last_changes_the_memory_format_alone(images):
    plain = next(loader(images).epoch(0)).x
    last = next(loader(images, **{"scaling.channels_last": True}).epoch(0)).x
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_padding_as_wide_as_the_images_is_refused_before_a_step(images):
    loader(images, **{"data.crop_padding": 7})
    with pytest.raises(UserError, match=r"data.crop_padding must be smaller .* got 8 .* 8x8"):
        loader(images, **{"data.crop_padding": 8})
