"""Image files to one array: decoded once, in a thread pool, and cached."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymi.data.cache import cached_array
from raymi.data.resize import fit_square_image
from raymi.errors import UserError

_FORMAT = 1  # part of the cache key: change it when the same files would decode differently
_FILES_PER_TASK = 64

logger = logging.getLogger(__name__)


def decode_files(paths: Sequence[Path], image_size: int | None) -> Tensor:
    """Decode image files to RGB, from the cache if no name, size or time of change differs.

    Args: paths, N > 0 image files, absolute; image_size, side in pixels, see `fit_square`; None
        keeps the size of the files, which must be the same for all.
    Returns: (N, 3, H, W) uint8.
    Raises: UserError, naming the file that cannot be decoded, or two files that differ in size.
    """
    key = _cache_key(paths, image_size)
    return torch.from_numpy(np.asarray(cached_array(key, lambda: _decode_all(paths, image_size))))


def _cache_key(paths: Sequence[Path], image_size: int | None) -> str:
    sha = hashlib.sha256(repr((_FORMAT, image_size)).encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        sha.update(repr((str(path), stat.st_size, stat.st_mtime_ns)).encode())
    return sha.hexdigest()


def _decode_all(paths: Sequence[Path], image_size: int | None) -> np.ndarray:
    logger.info("decoding %d images below %s", len(paths), os.path.commonpath(paths))
    first = decode_one(paths[0], image_size)
    images = np.empty((len(paths), *first.shape), np.uint8)

    def decode_some(start: int) -> None:
        for i in range(start, min(start + _FILES_PER_TASK, len(paths))):
            image = decode_one(paths[i], image_size)
            if image.shape != first.shape:
                raise UserError(
                    f"images differ in size ({_size(first)} in {paths[0]}, {_size(image)} in "
                    f"{paths[i]}): set data.image_size, to which all are resized"
                )
            images[i] = image

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_some, range(0, len(paths), _FILES_PER_TASK)):
            pass
    return images


def decode_one(path: Path, image_size: int | None) -> np.ndarray:
    """Reads one image file as (3, H, W) uint8."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if image_size is not None:
        rgb = fit_square_image(rgb, image_size)
    return np.asarray(rgb).transpose(2, 0, 1)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read as an image ({error}): replace it by an intact copy, "
        "or take it out of the data set"
    )


def _size(image: np.ndarray) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
