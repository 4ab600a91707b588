"""Generated images that are mixed into the training batches: one .npz file, read a piece at a time.

Such files are large, 3 GB for the public million of 32x32 images: what can be refused is refused
before an image is read, and the images are never held twice.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raymi.data.arrays import UNREADABLE, checked_labels, damaged, open_npz, read_array
from raymi.data.image_set import ImageSet
from raymi.data.resize import fit_square, height_and_width, rgb_images
from raymi.errors import UserError

CHUNK = 8192
"""Images read at a time."""


def check_generated(path: Path) -> None:
    """Find what is wrong with the file alone, without reading an image.

    Args: path, a .npz file with arrays `image`, uint8 in any layout of `rgb_images`, and `label`,
        (N,) integers from 0 on.
    Raises: UserError, with the remedy.
    """
    _read_facts(path)


def read_generated(
    path: Path, class_names: tuple[str, ...], image_size: int, *, resize: bool
) -> ImageSet:
    """The generated images, as images of the classes and the size of the training set.

    Args:
        path: as in `check_generated`.
        class_names: K names; labels must be below K.
        image_size: side of the square training images, in pixels.
        resize: bring images of another size to this one by `fit_square`, or refuse them.
    Raises: UserError, with the remedy, before an image is read unless the file is damaged.
    """
    facts = _read_facts(path)
    largest, num_classes = int(facts.labels.max()), len(class_names)
    if largest >= num_classes:
        raise UserError(
            f"{path}: labels must be 0..{num_classes - 1}, the classes of the data set, got "
            f"{largest}: give images that were generated for this data set"
        )
    height, width = facts.size
    if not resize and (height, width) != (image_size, image_size):
        raise UserError(
            f"{path}: generated images must be {image_size}x{image_size} like the training "
            f"images, got {width}x{height}: set data.image_size, to which all are resized"
        )
    images = torch.empty(len(facts.labels), 3, image_size, image_size, dtype=torch.uint8)
    start = 0
    for chunk in _chunks(path):
        images[start : start + len(chunk)] = fit_square(rgb_images(chunk), image_size)
        start += len(chunk)
    return ImageSet(images, facts.labels, class_names)


class _Facts(NamedTuple):
    """labels: (N,) int64, from 0 on, N > 0. size: height and width, in pixels."""

    labels: Tensor
    size: tuple[int, int]


def _read_facts(path: Path) -> _Facts:
    if not path.is_file():
        raise UserError(
            f"data.generated={path} is not a file: give a .npz file with arrays `image` and "
            "`label`, or leave it out"
        )
    with open_npz(path) as arrays:
        label = read_array(path, arrays, "label")
    try:
        with zipfile.ZipFile(path) as archive, archive.open("image.npy") as file:
            header = _read_header(file)
    except UNREADABLE as error:
        raise damaged(path, error) from error
    try:
        size = height_and_width(header.shape, header.dtype)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return _Facts(checked_labels(path, label, header.shape[0]), size)


def _chunks(path: Path) -> Iterator[np.ndarray]:
    """All images in the layout of the file, some at a time; in Fortran's order all at once."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("image.npy") as file:
            (num_images, *shape), fortran_order, _ = _read_header(file)
            chunk = num_images if fortran_order else CHUNK
            for start in range(0, num_images, chunk):
                num = min(chunk, num_images - start)
                pixels = np.frombuffer(bytearray(file.read(num * math.prod(shape))), np.uint8)
                yield pixels.reshape(num, *shape, order="F" if fortran_order else "C")
            file.read(1)  # at the end, zipfile compares the checksum
    except UNREADABLE as error:
        raise damaged(path, error) from error


class _Header(NamedTuple):
    """What stands before the values of a stored array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def _read_header(file: IO[bytes]) -> _Header:
    """Reads up to the first value."""
    if np.lib.format.read_magic(file) == (1, 0):
        return _Header(*np.lib.format.read_array_header_1_0(file))
    return _Header(*np.lib.format.read_array_header_2_0(file))
