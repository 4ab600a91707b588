"""Data sets in memory: uint8 images and int64 labels, on any device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from raymi.data.duplicates import count_duplicates, describe_duplicates

ChannelStats = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, all decoded and of one size.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, positions in `class_names`.
        class_names: K names.
        selected: (N,) int64, indices of the images in the original set; None: this is the original.

    Raises:
        ValueError: A shape or dtype differs.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    class_names: tuple[str, ...]
    selected: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"images must be uint8 (N, 3, H, W), got {self.images.dtype} {shape}")
        if self.labels.dtype != torch.int64 or self.labels.shape != shape[:1]:
            raise ValueError(
                f"labels must be int64 ({shape[0]},), got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSet:
        """Returns the set on `device`."""
        places = self.places.to(device)
        return ImageSet(self.images.to(device), self.labels.to(device), self.class_names, places)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """Returns the set of the samples at `indices`, (M,) integers, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        images, labels, places = self.images[index], self.labels[index], self.places[index]
        return ImageSet(images, labels, self.class_names, places)

    def at_most(self, num: int | None) -> ImageSet:
        """Returns an evenly spaced selection of `num` samples; all if num is None."""
        if num is None or num >= len(self):
            return self
        return self.subset(torch.arange(num) * len(self) // num)

    @cached_property
    def places(self) -> Tensor:
        """Indices of the images in the original set, (N,) int64."""
        if self.selected is None:
            return torch.arange(len(self), device=self.labels.device)
        return self.selected

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape, images and labels in hexadecimal; the same on every device."""
        sha = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            sha.update(tensor.cpu().contiguous().view(-1).numpy().data)
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Splits:
    """Data set ready for training: three sets of images and their statistics.

    Args:
        train: training images.
        val: validation images; may be empty.
        test: test images.
        name: key of `raymi.data.DATASETS`.
        num_classes: K.
        image_size: side of the square images, in pixels.
        mean: mean of each channel of `train`, in [0, 1] units.
        std: standard deviation of each channel of `train`, in [0, 1] units, at least 1/255.
        generated: generated images to mix into training batches, or None.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
    name: str
    num_classes: int
    image_size: int
    mean: ChannelStats
    std: ChannelStats
    generated: ImageSet | None = None

    @property
    def sets(self) -> dict[str, ImageSet]:
        """Splits by name, with `generated` if set."""
        sets = {"train": self.train, "val": self.val, "test": self.test}
        return sets if self.generated is None else {**sets, "generated": self.generated}

    @cached_property
    def duplicates(self) -> dict[str, int]:
        """Numbers of images shared by two splits, see `count_duplicates`."""
        return count_duplicates({name: images.images for name, images in self.sets.items()})

    @property
    def warning(self) -> str:
        """Warning about images shared by two splits; empty without any."""
        sizes = {name: len(images) for name, images in self.sets.items()}
        return describe_duplicates(self.duplicates, sizes)


def channel_stats(images: Tensor) -> tuple[ChannelStats, ChannelStats]:
    """Computes mean and standard deviation of each channel, exactly, from counts of 256 levels.

    Args:
        images: (N, 3, H, W) uint8, N > 0.

    Returns:
        (mean, std), three floats each, in [0, 1] units; std is at least 1/255, also for a constant
        channel.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(3):
        counts = torch.bincount(images[:, channel].reshape(-1), minlength=256).double().cpu()
        weights = counts / counts.sum()
        mean = (weights * levels).sum()
        variance = (weights * (levels - mean).square()).sum()
        means.append(mean.item())
        stds.append(max(variance.sqrt().item(), 1 / 255))
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
