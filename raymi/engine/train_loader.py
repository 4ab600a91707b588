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
from raymi.data.batches import (
    epoch_order,
    global_batch,
    mixed_order,
    share,
    share_sizes,
    steps_per_epoch,
)
from raymi.data.settings import check_crop


class Batch(NamedTuple):
    """A worker's share of a global batch.

    x: (b, 3, H, W) in [0, 1]. y: (b,). sample: (b,), positions in the training set of N; N + k for
    the generated image k.
    sizes: samples that each worker holds; they sum to the global batch.
    """

    x: Tensor
    y: Tensor
    sample: Tensor
    sizes: list[int]


class TrainLoader:
    """The training set on the worker's device, served in epochs.

    Args:
        images: the training set, already on the device.
        rank, world_size: whose share is served.
        generated: images of which `config.data.generated_fraction` of each batch consists, on the
            device too; None for none. An epoch has as many steps with them as without.
    Raises: UserError, where data.crop_padding is too large for the images.
    """

    def __init__(
        self,
        images: ImageSet,
        config: Config,
        rank: int,
        world_size: int,
        generated: ImageSet | None = None,
    ) -> None:
        check_crop(config.data.crop_padding, images.images.shape[-1])
        self.images = images
        self.generated = generated
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = steps_per_epoch(len(images), config.optim.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on; the last one may be smaller."""
        config, device = self.config, self.images.images.device
        order = self._order(epoch).to(device)
        for step in range(first_step, self.steps_per_epoch):
            everyone = global_batch(order, config.optim.batch_size, step)
            index = share(everyone, self.rank, self.world_size)
            images, y = self._images_and_labels(index)
            x = augment(
                to_unit(images),
                seed=config.seed,
                epoch=epoch,
                index=index,
                crop_padding=config.data.crop_padding,
                flip=config.data.flip,
            )
            if config.scaling.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            yield Batch(x, y, index, share_sizes(len(everyone), self.world_size))

    def _order(self, epoch: int) -> Tensor:
        """(N,) int64, on the CPU."""
        config = self.config
        if self.generated is None:
            return epoch_order(len(self.images), config.seed, epoch)
        return mixed_order(
            len(self.images),
            len(self.generated),
            config.data.generated_fraction,
            config.optim.batch_size,
            config.seed,
            epoch,
        )

    def _images_and_labels(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, H, W) uint8 and (b,) int64 of the samples, without waiting for the device.

        Both sets are asked for all of the samples, which costs less than to hold them as one.
        """
        real, made = self.images, self.generated
        if made is None:
            return real.images[index], real.labels[index]
        at_real, at_made = index.clamp(max=len(real) - 1), (index - len(real)).clamp(min=0)
        is_real = index < len(real)
        images = torch.where(
            is_real[:, None, None, None], real.images[at_real], made.images[at_made]
        )
        return images, torch.where(is_real, real.labels[at_real], made.labels[at_made])
