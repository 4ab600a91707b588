"""Augmentations of single images depend on seed, epoch and sample, not on batch or worker."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tiny_runs
import torch
from torch import nn
from torchvision.transforms import v2

from raymi.collectives import Collectives
from raymi.data.augment import to_unit
from raymi.data.sample_augment import SampleAugmentation
from raymi.engine.train_loader import TrainLoader
from raymi.errors import UserError
from raymi.overrides import validate

IMAGES = torch.randint(
    256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
INDEX = torch.arange(12) * 5
jitter = v2.ColorJitter(brightness=0.5)


def noisy(image):
    """Draws from all three global generators."""
    shift = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
    return (image / 255 * shift / 3).clamp(0, 1)


def in_place(image):
    return image.zero_()


def normalised(image):
    return image / 127.5 - 1


def smaller(image):
    return image[:, 1:]


def integers(image):
    return image.int()


def array(image):
    return image.numpy()


def failing(image):
    raise KeyError("no such image")


class Unseeded(nn.Module):
    """Counts its calls."""

    def __init__(self):
        super().__init__()
        self.num = 0

    def forward(self, image):
        self.num += 1
        return image // self.num


class Unmakeable(nn.Module):
    def __init__(self, strength):
        super().__init__()


class Place(Collectives):
    """Worker of three, without a process group."""

    world_size = 3

    def __init__(self, rank):
        self.rank = rank


def own(name):
    return f"{__name__}:{name}"


NAMES = ["autoaugment", "randaugment", own("jitter"), own("noisy"),
         "torchvision.transforms.v2:TrivialAugmentWide"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_augmented_alike_in_any_batch(name):
    augmentation = SampleAugmentation(name, "cifar10")
    augmentation.check(IMAGES)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    whole = augmentation(IMAGES, seed=0, epoch=1, index=INDEX)
    assert whole.dtype == torch.float32
    assert whole.min() >= 0
    assert whole.max() <= 1
    order = torch.tensor([7, 2, 9])
    part = augmentation(IMAGES[order], seed=0, epoch=1, index=INDEX[order])
    assert torch.equal(part, whole[order])
    assert not torch.equal(whole, to_unit(IMAGES))
    assert not torch.equal(whole, augmentation(IMAGES, seed=0, epoch=2, index=INDEX))
    assert not torch.equal(whole, augmentation(IMAGES, seed=1, epoch=1, index=INDEX))
    assert augmentation(IMAGES[:0], seed=0, epoch=0, index=INDEX[:0]).shape == (0, 3, 8, 8)
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()
    assert state[2] == np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("name", ["autoaugment", "randaugment"])
def test_named_policies_equal_those_of_torchvision(name):
    ours = SampleAugmentation(name, "svhn")
    theirs = {"autoaugment": v2.AutoAugment(v2.AutoAugmentPolicy.SVHN),
              "randaugment": v2.RandAugment()}[name]  # fmt: skip
    for number in range(12):
        torch.manual_seed(number)
        expected = theirs(IMAGES[number])
        assert torch.equal(ours._seeded(IMAGES[number], number), expected)


def test_the_images_of_the_data_set_do_not_change():
    before = IMAGES.clone()
    SampleAugmentation(own("in_place"), "digits")(IMAGES, seed=0, epoch=0, index=INDEX)
    assert torch.equal(before, IMAGES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("normalised", r"must return floats in \[0, 1\].*got \[-"),
        ("smaller", r"must map an image \(3, 8, 8\) uint8 .*got torch.uint8 \(3, 7, 8\)"),
        ("integers", "got torch.int32"),
        ("array", "got ndarray"),
        ("failing", "got KeyError"),
        ("Unseeded", "got another output for the same image and seeds"),
        ("Unmakeable", "cannot be made without arguments"),
        ("missing", "no function 'missing'"),
    ],
)
def test_an_own_augmentation_that_does_not_fit_is_refused_first(name, message):
    config = tiny_runs.tiny_config({"data.augment": own(name)})
    with pytest.raises(UserError, match=message):
        TrainLoader(tiny_runs.tiny_splits(config).train, config, Collectives())


def test_an_unknown_augmentation_is_refused_with_close_names():
    with pytest.raises(UserError, match="did you mean randaugment"):
        validate({"data": {"augment": "randaug"}})


def test_workers_share_the_augmented_batches_of_one():
    config = tiny_runs.tiny_config({"data.augment": "randaugment", "data.flip": True})
    images = tiny_runs.tiny_splits(config).train
    alone = list(TrainLoader(images, config, Collectives()).epoch(3))
    shares = [list(TrainLoader(images, config, Place(rank)).epoch(3)) for rank in range(3)]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
    resumed = next(TrainLoader(images, config, Collectives()).epoch(3, first_step=2))
    assert torch.equal(resumed.x, alone[2].x)
