"""Training batches: which samples, in which order, and how they are augmented, for one worker.

All of it is a function of (seed, epoch, step), never of the worker or of how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from raymi.config import Config
from raymi.data import ImageSet
from raymi.data.augment import augment, to_unit
from raymi.data.batches import epoch_order, global_batch, share, share_sizes, steps_per_epoch


class Batch(NamedTuple):
    """A worker's share of a global batch.

    x: (b, 3, H, W) in [0, 1]. y: (b,). sample: (b,), positions in the training set.
    sizes: samples that each worker holds; they sum to the global batch.
    """

    x: Tensor
    y: Tensor
    sample: Tensor
    sizes: list[int]


class Feed:
    """The training set on the worker's device, served in epochs.

    Args:
        images: the training set, already on the device.
        rank, world_size: whose share is served.
    """

    def __init__(self, images: ImageSet, config: Config, rank: int, world_size: int) -> None:
        self.images = images
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = steps_per_epoch(len(images), config.optim.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on; the last one may be smaller."""
        config, device = self.config, self.images.images.device
        order = epoch_order(len(self.images), config.seed, epoch).to(device)
        for step in range(first_step, self.steps_per_epoch):
            everyone = global_batch(order, config.optim.batch_size, step)
            index = share(everyone, self.rank, self.world_size)
            x = augment(
                to_unit(self.images.images[index]),
                seed=config.seed,
                epoch=epoch,
                index=index,
                crop_padding=config.data.crop_padding,
                flip=config.data.flip,
            )
            if config.scaling.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            y = self.images.labels[index]
            yield Batch(x, y, index, share_sizes(len(everyone), self.world_size))
