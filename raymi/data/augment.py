"""Random crops and flips of whole batches, on the device that has the images.

What happens to a sample depends on the key and on its index in the data set, so it is the same on
any device, in any batch and on any worker.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raymi.counter_rng import integers, random_key, uniform


def to_unit(images_uint8: Tensor) -> Tensor:
    """Pixels 0..255 to [0, 1]: (B, 3, H, W) uint8 to float32 of the same shape."""
    return images_uint8.to(torch.float32).div_(255)


def augment(
    x: Tensor, *, seed: int, epoch: int, index: Tensor, crop_padding: int, flip: bool
) -> Tensor:
    """The augmentation of CIFAR training: a random crop of the padded image, then a random flip.

    Args:
        x: (B, 3, H, W), uint8 or float.
        seed, epoch: choose the key.
        index: (B,) int64, the samples' positions in their data set.
        crop_padding: pixels on each side, see `random_crop`; 0 for no crop.
        flip: whether to flip at all.
    Returns: as x; x itself if nothing is to be done.
    """
    if crop_padding:
        x = random_crop(x, random_key(seed, "crop", epoch), index, crop_padding)
    if flip:
        x = random_flip(x, random_key(seed, "flip", epoch), index)
    return x


def random_crop(x: Tensor, key: int, index: Tensor, padding: int) -> Tensor:
    """Pad with zeros and cut out an image of the old size at a random place, as torchvision does.

    Args: x, (B, 3, H, W), any dtype; key, from `raymi.counter_rng.random_key`; index, (B,) int64;
        padding, pixels on each side.
    Returns: as x.
    """
    height, width = x.shape[2:]
    offsets = integers(key, index.to(x.device), 2 * padding + 1, (2,))
    padded = F.pad(x, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, 3, 2p+1, 2p+1, H, W), a view
    batch = torch.arange(len(x), device=x.device)
    return windows[batch, :, offsets[:, 0], offsets[:, 1]]


def random_flip(x: Tensor, key: int, index: Tensor) -> Tensor:
    """Mirror each image left to right with probability 1/2.

    Args: as in `random_crop`.
    Returns: as x.
    """
    flipped = uniform(key, index.to(x.device)) < 0.5
    return torch.where(flipped[:, None, None, None], x.flip(3), x)
