"""Random images in memory, in the shape of a data set."""

from __future__ import annotations

import torch

from raymi.benchmarks.plan import image_size, num_classes
from raymi.config import Config
from raymi.counter_rng import random_key
from raymi.data import ImageSet, Splits
from raymi.data.image_set import channel_stats


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
