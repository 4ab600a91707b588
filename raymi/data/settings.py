"""Settings of the data, and the names of the data sets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from raymi.errors import UserError, did_you_mean
from raymi.fields import Accepts, Count, Folder, Listed, Real, Section, Seed, Share, at_most
from raymi.formatting import shown

DATASETS = {
    "digits": "1,797 handwritten digits, 8x8 grey, that come with scikit-learn",
    "cifar10": "CIFAR-10, 50,000 + 10,000 images, 32x32 RGB",
    "cifar100": "CIFAR-100, 50,000 + 10,000 images, 32x32 RGB",
    "svhn": "Street View House Numbers, 73,257 + 26,032 digits, 32x32 RGB",
    "mnist": "MNIST, 60,000 + 10,000 handwritten digits, 28x28 grey",
    "fashion-mnist": "Fashion-MNIST, 60,000 + 10,000 pieces of clothing, 28x28 grey",
    "tiny-imagenet": "Tiny-ImageNet, 100,000 + 10,000 images, 64x64 RGB, 200 classes (no download)",
    "folder": "your own images: a folder with train/CLASS/, test/CLASS/ [and val/CLASS/]",
    "npz": "your own arrays `image` and `label` in one .npz file, or in a folder of them",
}
"""Names of data sets, each with one line of description; `raymi.data.load` has their readers."""


AUGMENTATIONS = ("autoaugment", "randaugment")
"""Names of augmentations of single images."""


def _data_set(value: str) -> str:
    if value not in DATASETS and ":" not in value:
        raise ValueError(
            f"unknown data set {shown(value)}: {did_you_mean(value, DATASETS)} (your own is named "
            "module:function)"
        )
    return value


def _augmentation(value: str) -> str:
    if value not in AUGMENTATIONS and ":" not in value:
        raise ValueError(
            f"unknown augmentation {shown(value)}: {did_you_mean(value, AUGMENTATIONS)} (your own "
            "is named module:name)"
        )
    return value


def plain_name(name: str) -> str:
    """Returns the name of a data set in tables and registries: of module:function the function."""
    return name.rpartition(":")[2]


class DataConfig(Section):
    """Training, validation and test images."""

    name: Annotated[
        str,
        AfterValidator(_data_set),
        Listed("data sets", {**DATASETS, "module:function": "your own (docs/extending.md)"}),
    ] = "digits"
    """Data set: digits, cifar10, cifar100, svhn, mnist, fashion-mnist, tiny-imagenet, folder, npz,
    or your own as module:function, which returns torch Datasets (docs/extending.md)."""
    root: Folder | None = None
    """Folder (or .npz file) that holds the data; none: a cache folder, $RAYMI_DATA if set. Passed
    to your own function as root=."""
    image_size: Annotated[int, Field(ge=8), at_most(4096)] | None = None
    """Side of the square images that the model sees, in pixels; none: as stored."""
    val_fraction: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    """Share of the training images held out for validation, stratified by class."""
    split_seed: Seed = 0
    """Seed of the validation split; independent of `seed`."""
    download: bool = True
    """Download missing data (torchvision's sets)."""
    limit: Count | None = None
    """Number of training and of test images, for a quick try; none: all."""
    generated: Folder | None = None
    """A .npz file of generated images for training, arrays `image` and `label`; none: real images
    only. (Public ones come from models that saw all training images, including those that raymi
    holds out for validation.)"""
    generated_fraction: Share = 0.7
    """Share of generated images in each training batch, if `generated` is set."""
    crop_padding: Annotated[int, Field(ge=0), at_most(4096)] = 4
    """Zero padding on each side before a random crop, in pixels, below the image's side; 0: off."""
    flip: bool = True
    """Random horizontal flip."""
    augment: (
        Annotated[
            str,
            AfterValidator(_augmentation),
            Accepts(f"{' | '.join(AUGMENTATIONS)} | module:name"),
        ]
        | None
    ) = None
    """Augmentation of each training image after crop and flip: torchvision's AutoAugment (policy
    of CIFAR-10, SVHN or else ImageNet) or RandAugment, or your own (docs/extending.md)."""
    mix_images: Literal["cutmix", "mixup"] | None = None
    """Mix each training image with another one of its batch, and labels likewise, after the other
    augmentations: a square of it (cutmix), or a weighted mean (mixup)."""

    @property
    def plain_name(self) -> str:
        """Name of the data set in tables and registries."""
        return plain_name(self.name)


def check_crop(crop_padding: int, image_size: int) -> None:
    """Refuses padding so wide that a crop may miss the image.

    Args:
        crop_padding: pixels on each side.
        image_size: side of the images, in pixels.

    Raises:
        UserError: The padding is not smaller than the images.
    """
    if crop_padding >= image_size:
        raise UserError(
            f"data.crop_padding must be smaller than the images, got {crop_padding} for images of "
            f"{image_size}x{image_size} pixels: {image_size // 8} is usual, 0 switches crops off"
        )
