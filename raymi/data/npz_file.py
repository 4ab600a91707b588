"""Arrays `image` and `label` of one .npz file, checked by their headers and read in chunks.

Such files are large, 3 GB for the public million of 32x32 images: invalid ones are refused before
an image is read, and memory holds the images once.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raymi.data.labels import integer_labels
from raymi.data.pixel_types import check_scale, object_array, remedy
from raymi.data.resize import fit_square, height_and_width, rgb_images
from raymi.errors import UserError

CHUNK = 8192
"""Images read at a time."""

_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    RuntimeError,  # encrypted, or compressed by a method that Python lacks
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors of numpy and zipfile for damaged files."""


class NpzFacts(NamedTuple):
    """Labels and image size of a file.

    Args:
        labels: (N,) int64, from 0 on, N > 0.
        size: height and width of the images, in pixels.
    """

    labels: Tensor
    size: tuple[int, int]


def open_npz(path: Path) -> np.lib.npyio.NpzFile:
    """Opens a file with arrays `image` and `label`, without reading them.

    Raises:
        UserError: It is missing, not readable, or lacks an array.
    """
    try:
        arrays = np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise UserError(f"{path} is not a readable .npz file ({error}): write it again") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise UserError(f"{path} holds a single array: write it with numpy.savez(image=, label=)")
    if missing := {"image", "label"} - set(arrays.files):
        arrays.close()
        raise UserError(
            f"{path} must hold arrays `image` and `label`, got {sorted(arrays.files)}: "
            f"add or rename {sorted(missing)}"
        )
    return arrays


def read_facts(path: Path) -> NpzFacts:
    """Reads the labels and the header of the images.

    Raises:
        UserError: Labels are not one integer >= 0 for each image, or `rgb_images` does not take the
            type or shape of the images.
    """
    open_npz(path).close()
    image, label = _header(path, "image"), _header(path, "label")
    for name, header in (("image", image), ("label", label)):
        if header.dtype.hasobject:
            raise UserError(f"{path}: {object_array(name)}")
    if image.dtype != np.uint8:
        raise UserError(f"{path}: {remedy(image.dtype, _chunks(path))}")
    try:
        size = height_and_width(image.shape)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return NpzFacts(integer_labels(path, _read_label(path), image.shape[0]), size)


def read_images(path: Path, facts: NpzFacts, image_size: int | None = None) -> Tensor:
    """Reads all images of a file in chunks.

    Args:
        path: file.
        facts: its labels and image size.
        image_size: side in pixels to resize to with `fit_square`; None: no resizing.

    Returns:
        (N, 3, H, W) uint8.

    Raises:
        UserError: The file is damaged, or all images are nearly black.
    """
    height, width = facts.size if image_size is None else (image_size, image_size)
    images = torch.empty(len(facts.labels), 3, height, width, dtype=torch.uint8)
    start = brightest = 0
    for chunk in _chunks(path):
        brightest = max(brightest, int(chunk.max()))
        pixels = rgb_images(chunk)
        if image_size is not None:
            pixels = fit_square(pixels, image_size)
        images[start : start + len(chunk)] = pixels
        start += len(chunk)
    check_scale(f"the {start} images of {path}", brightest / 255)
    return images


def _read_label(path: Path) -> np.ndarray:
    with open_npz(path) as arrays:
        try:
            return arrays["label"]
        except _UNREADABLE as error:
            raise _damaged(path, error) from error


def _chunks(path: Path) -> Iterator[np.ndarray]:
    """Yields the images in chunks and in the file's layout; one chunk in Fortran order."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("image.npy") as file:
            (num_images, *shape), fortran_order, dtype = _read_header(file)
            chunk = num_images if fortran_order else CHUNK
            for start in range(0, num_images, chunk):
                num = min(chunk, num_images - start)
                content = bytearray(file.read(num * math.prod(shape) * dtype.itemsize))
                pixels = np.frombuffer(content, dtype)
                yield pixels.reshape(num, *shape, order="F" if fortran_order else "C")
            file.read(1)  # at the end, zipfile compares the checksum
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


class _Header(NamedTuple):
    """Shape, order and type in the header of a stored array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def _header(path: Path, name: str) -> _Header:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            header = _read_header(file)
            stored = archive.getinfo(f"{name}.npy").file_size - file.tell()
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    expected = math.prod(header.shape) * header.dtype.itemsize
    if stored != expected and not header.dtype.hasobject:
        raise _damaged(
            path,
            ValueError(f"{name} has {stored:,} bytes, expected {expected:,} for {header.shape}"),
        )
    return header


def _read_header(file: IO[bytes]) -> _Header:
    """Reads up to the first value."""
    if np.lib.format.read_magic(file) == (1, 0):
        return _Header(*np.lib.format.read_array_header_1_0(file))
    return _Header(*np.lib.format.read_array_header_2_0(file))


def _damaged(path: Path, error: Exception) -> UserError:
    """Returns the error for a file that cannot be read to its end."""
    return UserError(f"{path} is damaged ({error}): write it again")
