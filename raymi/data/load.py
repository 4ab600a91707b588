"""Loader of data sets by name: reads, limits, resizes and splits them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from raymi.counter_rng import random_key
from raymi.data.arrays import digits_source, npz_source
from raymi.data.folders import folder_source, tiny_imagenet_source
from raymi.data.generated import check_generated, read_generated
from raymi.data.image_set import ImageSet, Splits, channel_stats
from raymi.data.labels import require_training_images
from raymi.data.own_function import own_source
from raymi.data.resize import fit_square
from raymi.data.settings import plain_name
from raymi.data.source import Request, Source
from raymi.data.stratify import first_of_each_class, hold_out
from raymi.data.torchvision_sets import torchvision_sources
from raymi.errors import UserError, did_you_mean

_SOURCES: dict[str, Source] = {
    "digits": digits_source(),
    **torchvision_sources(),
    "tiny-imagenet": tiny_imagenet_source(),
    "folder": folder_source(),
    "npz": npz_source(),
}
"""Reader of each data set of `raymi.data.settings.DATASETS`."""


def check_data(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    image_size: int | None = None,
    val_fraction: float = 0.1,
    download: bool = True,
    limit: int | None = None,
    generated: str | os.PathLike[str] | None = None,
) -> None:
    """Refuses arguments and files with which `load_splits` would fail, without reading an image.

    Args:
        name: key of `DATASETS`, or `package.module:function` of the user's own.
        root: folder of the data, or a .npz file; None: as in `load_splits`.
        image_size: side in pixels to resize to; None: images keep their size.
        val_fraction: share of each class of the training images for validation.
        download: whether missing files may be downloaded.
        limit: largest number of training images; None: all.
        generated: .npz file of generated training images; None: none.

    Raises:
        UserError: The name is unknown, a number is out of range, labels are not 0, 1, 2, ..., or
            files are missing and cannot be downloaded.
    """
    request = _checked_request(name, root, image_size, val_fraction, download, limit)
    if (file := _absolute(generated)) is not None:
        check_generated(file)
    _source(name).check(request)


def load_splits(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    image_size: int | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    download: bool = True,
    limit: int | None = None,
    generated: str | os.PathLike[str] | None = None,
) -> Splits:
    """Loads a data set into memory, with a validation split held out from its training images.

    Args:
        name: key of `DATASETS`, or `package.module:function` of the user's own.
        root: folder of the data, or a .npz file; None: `$RAYMI_DATA`, else `~/.cache/raymi/data`.
            `folder` and `npz` need it.
        image_size: side of the images, in pixels, to which they are resized bilinearly (see
            `raymi.data.resize.fit_square`); None: the native size.
        val_fraction: share of each class of the training images to hold out, in [0, 1); unused if
            the data set has its own validation images.
        split_seed: seed of the split, which depends on it and on the labels only.
        download: download missing files.
        limit: number of training images before the split, and of test and validation images, in
            proportion to the classes. Labels are checked before.
        generated: .npz file of generated images for training batches, with arrays `image` (uint8)
            and `label`; read whole, also with `limit`. Splits, mean and std do not depend on it.

    Returns:
        The splits, on the CPU.

    Raises:
        UserError: Invalid arguments or files.
    """
    request = _checked_request(name, root, image_size, val_fraction, download, limit)
    if (file := _absolute(generated)) is not None:
        check_generated(file)  # before anything is downloaded
    parts = _source(name).load(request)
    train = _limited_and_resized(parts.train, request)
    test = _limited_and_resized(parts.test, request)
    if parts.val is not None:
        val = _limited_and_resized(parts.val, request)
    else:
        key = random_key("validation split", split_seed)
        kept, held = hold_out(train.labels, val_fraction, key)
        train, val = train.subset(kept), train.subset(held)
        if request.limit is None:
            require_training_images(train.labels, val.labels, train.class_names, "validation")
    mean, std = channel_stats(train.images)
    side = _common_side({"train": train, "val": val, "test": test})
    made = None
    if file is not None:
        made = read_generated(file, train.class_names, side, resize=image_size is not None)
    return Splits(
        train=train,
        val=val,
        test=test,
        name=plain_name(name),
        num_classes=len(train.class_names),
        image_size=side,
        mean=mean,
        std=std,
        generated=made,
    )


def _source(name: str) -> Source:
    return own_source() if ":" in name else _SOURCES[name]


def _checked_request(
    name: str,
    root: str | os.PathLike[str] | None,
    image_size: int | None,
    val_fraction: float,
    download: bool,
    limit: int | None,
) -> Request:
    if name not in _SOURCES and ":" not in name:
        raise UserError(f"unknown data set {name!r}: {did_you_mean(name, _SOURCES)}")
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction must be in [0, 1), got {val_fraction}: 0.1 is usual")
    for setting, value in (("image_size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{setting} must be at least 1, got {value}: or leave it out")
    return Request(name, _absolute(root), image_size, limit, download)


def _absolute(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path).expanduser().absolute()


def _limited_and_resized(images: ImageSet, request: Request) -> ImageSet:
    if request.limit is not None and request.limit < len(images):
        images = images.subset(first_of_each_class(images.labels, request.limit))
    if request.image_size is not None:
        images = replace(images, images=fit_square(images.images, request.image_size))
    return images


def _common_side(sets: Mapping[str, ImageSet]) -> int:
    sizes = {name: tuple(images.images.shape[:1:-1]) for name, images in sets.items()}
    (width, height), *others = set(sizes.values())
    if others or width != height:
        found = ", ".join(f"{size[0]}x{size[1]} in {name}" for name, size in sizes.items())
        raise UserError(
            f"images must all be square and of one size, got {found}: set data.image_size"
        )
    return width
