"""Conversion of images in any usual layout and size to square RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raymi.data.pixel_types import remedy
from raymi.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_CHUNK = 1024  # images turned to float32 at a time


def rgb_images(array: np.ndarray) -> Tensor:
    """Converts images of any usual layout to three channels first; grey is repeated.

    Args:
        array: uint8: (N, H, W), (N, H, W, C) or (N, C, H, W), with C 1 or 3.

    Returns:
        (N, 3, H, W) uint8, contiguous.

    Raises:
        UserError: The dtype or shape is another one.
    """
    if array.dtype != np.uint8:
        raise UserError(remedy(array.dtype, [array]))
    height_and_width(array.shape)
    images = torch.from_numpy(array)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    return images.expand(-1, 3, -1, -1).contiguous()


def height_and_width(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns height and width, in pixels, of images in a layout of `rgb_images`.

    Raises:
        UserError: The shape is another one, or images have no pixels.
    """
    match shape:
        case (_, height, width) | (_, height, width, 1 | 3) | (_, 1 | 3, height, width):
            if height and width:
                return height, width
    raise UserError(
        f"images must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3, got {shape}"
    )


def fit_square(images: Tensor, size: int) -> Tensor:
    """Resizes the shorter side to `size` and crops the centre of the longer one.

    Bilinear with antialiasing, in float32, rounded to the nearest level, also for enlarging.
    Images of that size are returned unchanged.

    Args:
        images: (N, 3, H, W) uint8.
        size: side, in pixels.

    Returns:
        (N, 3, size, size) uint8.
    """
    height, width = images.shape[2:]
    if height == width == size:
        return images
    new_height, new_width, top, left = _scaled_and_centred(height, width, size)
    out = images.new_empty(len(images), 3, size, size)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].float()
        resized = F.interpolate(chunk, (new_height, new_width), mode="bilinear", antialias=True)
        out[start : start + _CHUNK] = resized[..., top : top + size, left : left + size].round()
    return out


def fit_square_image(image: Image, size: int) -> Image:
    """Resizes one RGB image as `fit_square` does, up to one level of 255, without torch's threads.

    It is for decoding in a thread pool, where torch would start threads in every thread.
    """
    from PIL.Image import Resampling

    new_height, new_width, top, left = _scaled_and_centred(image.height, image.width, size)
    resized = image.resize((new_width, new_height), Resampling.BILINEAR)  # antialiases
    return resized.crop((left, top, left + size, top + size))


def _scaled_and_centred(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Returns the size with a shorter side of `size`, and top and left of the centre crop."""
    scale = size / min(height, width)
    new_height, new_width = max(size, round(height * scale)), max(size, round(width * scale))
    return new_height, new_width, (new_height - size) // 2, (new_width - size) // 2
