"""Decoder of image files into one array, in a thread pool, with a cache."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymi.data.cache import cached_array
from raymi.data.image_file import read_image, unreadable
from raymi.data.pixel_types import check_scale
from raymi.data.resize import fit_square_image
from raymi.errors import UserError
from raymi.formatting import printable

_FORMAT = 2  # part of the cache key; change it with the decoder
_FILES_PER_TASK = 64

logger = logging.getLogger(__name__)


def decode_files(paths: Sequence[Path], image_size: int | None) -> Tensor:
    """Decodes image files to RGB, or reads them from the cache if no file has changed.

    Args:
        paths: N > 0 image files, absolute.
        image_size: side in pixels, see `fit_square`; None keeps the size of the files, which must
            be equal.

    Returns:
        (N, 3, H, W) uint8.

    Raises:
        UserError: `read_image` refuses a file, two files differ in size, or all files of more than
            8 bits are nearly black.
    """
    key = _cache_key(paths, image_size)
    return torch.from_numpy(np.asarray(cached_array(key, lambda: _decode_all(paths, image_size))))


def _cache_key(paths: Sequence[Path], image_size: int | None) -> str:
    sha = hashlib.sha256(repr((_FORMAT, image_size)).encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        if stat.st_size == 0:
            raise unreadable(path, ValueError("it is empty"))
        sha.update(repr((str(path), stat.st_size, stat.st_mtime_ns)).encode())
    return sha.hexdigest()


def _decode_all(paths: Sequence[Path], image_size: int | None) -> np.ndarray:
    folder = printable(os.path.commonpath(paths))
    logger.info("decoding %d images below %s", len(paths), folder)
    first, _ = decode_one(paths[0], image_size)
    _require_memory(len(paths), first)
    images = np.empty((len(paths), *first.shape), np.uint8)
    brightest = np.full(len(paths), math.nan)  # of files of more than 8 bits

    def decode_some(start: int) -> None:
        for i in range(start, min(start + _FILES_PER_TASK, len(paths))):
            image, share = decode_one(paths[i], image_size)
            if image.shape != first.shape:
                raise UserError(
                    f"images differ in size ({_size(first)} in {printable(paths[0])}, "
                    f"{_size(image)} in {printable(paths[i])}): set data.image_size, to which "
                    "all are resized"
                )
            images[i] = image
            if share is not None:
                brightest[i] = share

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_some, range(0, len(paths), _FILES_PER_TASK)):
            pass
    if len(deep := brightest[~np.isnan(brightest)]):
        check_scale(f"all {len(deep)} images of more than 8 bits below {folder}", deep.max())
    check_scale(f"all {len(images)} images below {folder}", images.max() / 255)
    return images


def decode_one(path: Path, image_size: int | None) -> tuple[np.ndarray, float | None]:
    """Reads one image file as (3, H, W) uint8, and `Decoded.brightest`."""
    rgb, brightest = read_image(path)
    if image_size is not None:
        rgb = fit_square_image(rgb, image_size)
    return np.asarray(rgb).transpose(2, 0, 1), brightest


def _require_memory(num_images: int, first: np.ndarray) -> None:
    """Refuses images that do not fit into this machine's memory."""
    import psutil

    needed, total = num_images * first.nbytes, psutil.virtual_memory().total
    if needed > total:
        raise UserError(
            f"{num_images} images of {_size(first)} pixels take {needed / 2**30:.0f} GiB, this "
            f"machine has {total / 2**30:.0f}: set a smaller data.image_size, to which all are "
            "resized, or data.limit"
        )


def _size(image: np.ndarray) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
