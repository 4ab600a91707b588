"""Random crops and flips of whole batches, on the device of the images.

The augmentation of a sample depends on the key and its index in the data set only, so it is the
same on any device, in any batch and on any worker.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raymi.counter_rng import integers, random_key, uniform


def to_unit(images_uint8: Tensor) -> Tensor:
    """Scales uint8 pixels 0..255 (B, 3, H, W) to float32 in [0, 1]."""
    return images_uint8.to(torch.float32).div_(255)


def augment(
    x: Tensor, *, seed: int, epoch: int, index: Tensor, crop_padding: int, flip: bool
) -> Tensor:
    """Augments as in CIFAR training: a random crop of the padded image, then a random flip.

    Args:
        x: (B, 3, H, W), uint8 or float.
        seed: seed of the random keys.
        epoch: number of the epoch, part of the keys.
        index: (B,) int64, positions of the samples in their data set.
        crop_padding: padding on each side, in pixels; 0: no crop.
        flip: flip at random.

    Returns:
        Shape and type of x; x itself without crop and flip.
    """
    if crop_padding:
        x = random_crop(x, random_key(seed, "crop", epoch), index, crop_padding)
    if flip:
        x = random_flip(x, random_key(seed, "flip", epoch), index)
    return x


def random_crop(x: Tensor, key: int, index: Tensor, padding: int) -> Tensor:
    """Pads with zeros and crops at random to the original size, as torchvision does.

    Args:
        x: (B, 3, H, W), any dtype.
        key: from `raymi.counter_rng.random_key`.
        index: (B,) int64, positions of the samples in their data set.
        padding: padding on each side, in pixels.

    Returns:
        Shape and type of x.
    """
    height, width = x.shape[2:]
    offsets = integers(key, index.to(x.device), 2 * padding + 1, (2,))
    padded = F.pad(x, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, 3, 2p+1, 2p+1, H, W), a view
    batch = torch.arange(len(x), device=x.device)
    return windows[batch, :, offsets[:, 0], offsets[:, 1]]


def random_flip(x: Tensor, key: int, index: Tensor) -> Tensor:
    """Mirrors each image left to right with probability 1/2.

    Args:
        x: (B, 3, H, W), of any type.
        key: of the random numbers.
        index: (B,) positions of the samples in their data set.

    Returns:
        Shape and type of x.
    """
    flipped = uniform(key, index.to(x.device)) < 0.5
    return torch.where(flipped[:, None, None, None], x.flip(3), x)
