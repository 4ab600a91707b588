"""Augmentations of single images: torchvision's policies by name, and the user's own.

They draw from the global random generators, which are seeded for each sample by (seed, epoch,
sample index) and restored after a batch: a sample is augmented alike on any worker.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from raymi.counter_rng import random_key
from raymi.data.augment import to_unit
from raymi.errors import UserError, what_happened
from raymi.own_code import import_function
from raymi.random_state import random_state_kept

_CHECKED = 4
"""Images on which an augmentation is tried."""
_POLICIES = {
    "cifar10": v2.AutoAugmentPolicy.CIFAR10,
    "cifar100": v2.AutoAugmentPolicy.CIFAR10,
    "svhn": v2.AutoAugmentPolicy.SVHN,
}
"""AutoAugment's policy by data set; ImageNet's for others."""


class SampleAugmentation:
    """Augmentation of each image of a batch.

    Args:
        name: "autoaugment", "randaugment", or `package.module:name` of a function or transform
            that maps an image (3, H, W) uint8 to one of the same shape, uint8 or float in [0, 1];
            a class is called without arguments for one.
        data_name: name of the data set, which decides on AutoAugment's policy.

    Raises:
        UserError: The user's own cannot be imported or made.
    """

    def __init__(self, name: str, data_name: str) -> None:
        self.name = name
        self.transform = _transform(name, data_name)

    def __call__(self, images: Tensor, *, seed: int, epoch: int, index: Tensor) -> Tensor:
        """Augments a batch.

        Args:
            images: (B, 3, H, W) uint8.
            seed: seed of the random keys.
            epoch: number of the epoch, part of the keys.
            index: (B,) int64, positions of the samples in their data set; on the CPU.

        Returns:
            (B, 3, H, W) float32 in [0, 1].
        """
        if not len(images):
            return to_unit(images)
        devices = [images.device] if images.device.type == "cuda" else []
        with random_state_kept(devices=devices):
            return torch.stack(
                [
                    self._one(image, random_key(seed, "augment", epoch, number))
                    for image, number in zip(images, index.tolist(), strict=True)
                ]
            )

    def check(self, images: Tensor) -> None:
        """Tries the augmentation on the first images of a set (N, 3, H, W) uint8.

        Raises:
            UserError: It fails, returns something else, or depends on more than the seed.
        """
        with random_state_kept():
            for number, image in enumerate(images[:_CHECKED]):
                outputs = [self._tried(image, random_key("try", number)) for _ in range(2)]
                if not torch.equal(*outputs):
                    raise self._error(
                        "depend on the image and torch's, numpy's and Python's global random "
                        "generators alone",
                        "another output for the same image and seeds",
                    )

    def _one(self, image: Tensor, key: int) -> Tensor:
        out = self._seeded(image, key)
        return to_unit(out) if out.dtype == torch.uint8 else out.float().clamp(0, 1)

    def _seeded(self, image: Tensor, key: int) -> Any:
        torch.manual_seed(key)
        np.random.seed(key % 2**32)  # noqa: NPY002
        random.seed(key)
        return self.transform(image.clone())

    def _tried(self, image: Tensor, key: int) -> Tensor:
        expected = f"map an image {tuple(image.shape)} uint8 to one of that shape"
        try:
            out = self._seeded(image, key)
        except (Exception, SystemExit) as error:
            raise self._error(expected, what_happened(error)) from error
        if not isinstance(out, Tensor):
            raise self._error(expected, type(out).__name__)
        if out.shape != image.shape or (out.dtype != torch.uint8 and not out.is_floating_point()):
            raise self._error(f"{expected}, uint8 or float", f"{out.dtype} {tuple(out.shape)}")
        if out.is_floating_point() and not (out.min() >= 0 and out.max() <= 1):
            raise self._error(
                "return floats in [0, 1] (the classifier normalises)",
                f"[{out.min().item():.4g}, {out.max().item():.4g}]",
            )
        return out

    def _error(self, expected: str, came: str) -> UserError:
        return UserError(
            f"augmentation {self.name!r} must {expected}, got {came}: see docs/extending.md, or "
            "leave out data.augment"
        )


def _transform(name: str, data_name: str) -> Callable[[Tensor], Any]:
    if name == "autoaugment":
        return v2.AutoAugment(_POLICIES.get(data_name, v2.AutoAugmentPolicy.IMAGENET))
    if name == "randaugment":
        return v2.RandAugment()
    function = import_function(name, "augmentation")
    if not isinstance(function, type):
        return function
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"augmentation {name!r} is a class that cannot be made without arguments "
            f"({what_happened(error)}): name an instance of it"
        ) from error
