"""Random images in memory, in the shape of a data set."""

from __future__ import annotations

import torch

from raymi.config import Config
from raymi.counter_rng import random_key
from raymi.data import ImageSet, Splits
from raymi.data.image_set import channel_stats

_SIZES = {"digits": 8, "mnist": 28, "fashion-mnist": 28, "tiny-imagenet": 64}
_CLASSES = {"cifar100": 100, "tiny-imagenet": 200}


def image_size(config: Config) -> int:
    """Returns the side in pixels: `data.image_size`, else the data set's, else 32."""
    return config.data.image_size or _SIZES.get(config.data.name, 32)


def num_classes(config: Config) -> int:
    """Returns the number of classes of the data set; 10 if only its files have it."""
    return _CLASSES.get(config.data.name, 10)


def random_splits(config: Config, num: int) -> Splits:
    """Returns a training set of `num` random images that depend on the seed, and no others."""
    size, classes = image_size(config), num_classes(config)
    generator = torch.Generator().manual_seed(random_key(config.seed, "bench images"))
    images = torch.randint(256, (num, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(classes, (num,), generator=generator)
    train = ImageSet(images, labels, tuple(f"class {k}" for k in range(classes)))
    empty = train.subset(torch.arange(0))
    mean, std = channel_stats(images)
    return Splits(train, empty, empty, "random", classes, size, mean, std)
