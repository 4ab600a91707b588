"""Train loader: shards of augmented batches, a function of (seed, epoch, step).

The global batch does not depend on the worker or on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from raymi.collectives import Collectives, Shard
from raymi.config import Config
from raymi.counter_rng import random_key
from raymi.data import ImageSet
from raymi.data.augment import augment, to_unit
from raymi.data.batches import (
    epoch_order,
    global_batch,
    mixed_order,
    shard_of,
    share,
    steps_per_epoch,
)
from raymi.data.mix_images import mix_images, mixed_targets
from raymi.data.sample_augment import SampleAugmentation
from raymi.data.settings import check_crop


class Batch(NamedTuple):
    """Shard of a global batch.

    Attributes:
        x: (b, 3, H, W) in [0, 1].
        y: (b,) labels; with `data.mix_images` (b, K) probabilities.
        shard: its place in the global batch; positions in the training set of N images are 0 to
            N - 1, and N + k for generated image k.
    """

    x: Tensor
    y: Tensor
    shard: Shard


class TrainLoader:
    """Loader of a worker's shards of the training set.

    Args:
        images: the training set, on the worker's device.
        config: of the run.
        group: the workers.
        generated: images for `config.data.generated_fraction` of each batch, on the same device;
            None: no such images. They do not change the number of steps in an epoch.

    Raises:
        UserError: data.crop_padding is too large for the images, or data.augment does not fit them.
    """

    def __init__(
        self,
        images: ImageSet,
        config: Config,
        group: Collectives,
        generated: ImageSet | None = None,
    ) -> None:
        check_crop(config.data.crop_padding, images.images.shape[-1])
        self.sample_augmentation = None
        if config.data.augment is not None:
            self.sample_augmentation = SampleAugmentation(config.data.augment, config.data.name)
            self.sample_augmentation.check(images.images)
        self.images = images
        self.generated = generated
        self.config = config
        self.group = group
        self.steps_per_epoch = steps_per_epoch(len(images), config.optim.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from `first_step` on; the last one may be smaller."""
        config, device = self.config, self.images.images.device
        order = self._order(epoch).to(device)
        for step in range(first_step, self.steps_per_epoch):
            batch = global_batch(order, config.optim.batch_size, step)
            shard = shard_of(batch, self.group, random_key(config.seed, "start", epoch))
            x, y = self._samples(epoch, shard.index)
            if config.data.mix_images is not None:
                partners = share(batch.roll(1), self.group.rank, self.group.world_size)
                other, labels = self._samples(epoch, partners)
                x, part = mix_images(
                    config.data.mix_images,
                    x,
                    other,
                    seed=config.seed,
                    epoch=epoch,
                    index=shard.index,
                )
                y = mixed_targets(y, labels, part, len(self.images.class_names))
            if config.scaling.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            yield Batch(x, y, shard)

    def _samples(self, epoch: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns augmented images (b, 3, H, W) in [0, 1] and labels (b,)."""
        config = self.config
        images, y = self._images_and_labels(index)
        x = augment(
            images,
            seed=config.seed,
            epoch=epoch,
            index=index,
            crop_padding=config.data.crop_padding,
            flip=config.data.flip,
        )
        if self.sample_augmentation is None:
            return to_unit(x), y
        return self.sample_augmentation(x, seed=config.seed, epoch=epoch, index=index), y

    def _order(self, epoch: int) -> Tensor:
        """Returns the order of an epoch's samples: (N,) int64 on the CPU."""
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
        """Returns (b, 3, H, W) uint8 and (b,) int64 without waiting for the device.

        Indexes both sets with all samples, which is cheaper than a concatenated copy.
        """
        real, generated = self.images, self.generated
        if generated is None:
            return real.images[index], real.labels[index]
        at_real, at_generated = index.clamp(max=len(real) - 1), (index - len(real)).clamp(min=0)
        is_real = index < len(real)
        images = torch.where(
            is_real[:, None, None, None], real.images[at_real], generated.images[at_generated]
        )
        return images, torch.where(is_real, real.labels[at_real], generated.labels[at_generated])
