"""Checks and remedies for pixels that are not uint8 on the scale 0..255."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from raymi.errors import UserError

DIM = 1 / 15
"""Share of full scale; images without a brighter pixel have another scale.

12 of 16 bits reach 4095/65535, and the grey levels 0..16 of scikit-learn's digits 16/255.
"""


def object_array(name: str) -> str:
    """Returns the error for an array of Python objects, which needs pickle."""
    convert = {"image": "np.stack(list(image))", "label": "np.array(label.tolist())"}[name]
    return (
        f"`{name}` is an array of Python objects, expected one of numbers: save it with "
        f"{name} = {convert}" + (", images of one size" if name == "image" else "")
    )


def remedy(dtype: np.dtype, chunks: Iterable[np.ndarray]) -> str:
    """Returns the error for images that are not uint8, with an expression that converts them.

    Args:
        dtype: type of the images.
        chunks: all images, in chunks; read until their range is known.
    """
    if dtype.hasobject:
        return object_array("image")
    expected = f"images must be uint8 in 0..255, got {dtype}"
    if dtype == np.bool_:
        return f'{expected}: convert them with image = image.astype("uint8") * 255'
    if dtype.kind not in "iuf":
        return f"{expected}: convert them"
    found = _range(chunks)
    if found is None:
        return f"{expected} and no image"
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return f"{expected} with NaN or infinite values: repair or remove those images"
    line = _conversion(dtype, found)
    came = f"{expected} from {found.low:.6g} to {found.high:.6g}"
    if line is None:
        return f"{came}: scale them so that black is 0 and white is 255"
    return f"{came}: convert them with image = {line}"


def check_scale(images: str, brightest: float) -> None:
    """Refuses black and nearly black images, which have another scale.

    Args:
        images: name of the images, for the message.
        brightest: largest value of all pixels, as a share of full scale.

    Raises:
        UserError: `brightest` is at most `DIM`.
    """
    if brightest <= DIM:
        raise UserError(
            f"{images} are nearly black: their brightest pixel has {100 * brightest:.2g}% of full "
            "scale, so they seem to use another one (as 0..1, or 12 bits stored in 16). Multiply "
            "the pixels so that white is 255 in 8 bits, 65535 in 16 bits, 1.0 in floats"
        )


class _Range(NamedTuple):
    """Smallest and largest value; NaN if a value is NaN."""

    low: float
    high: float


def _range(chunks: Iterable[np.ndarray]) -> _Range | None:
    lows, highs = [], []
    for chunk in chunks:
        if chunk.size:
            lows.append(float(chunk.min()))
            highs.append(float(chunk.max()))
            if not (math.isfinite(lows[-1]) and math.isfinite(highs[-1])):
                return _Range(lows[-1], highs[-1])
    return _Range(min(lows), max(highs)) if lows else None


def _conversion(dtype: np.dtype, found: _Range) -> str | None:
    """Returns a numpy expression; None if the scale is unknown."""
    low, high = found
    whole = dtype.kind in "iu"
    if low >= 0 and high <= 1:
        return 'image.astype("uint8") * 255' if whole else '(image * 255).round().astype("uint8")'
    if low >= 0 and high <= 255:
        return 'image.astype("uint8")' if whole else 'image.round().astype("uint8")'
    if not whole and low >= -1 and high <= 1:
        return '((image + 1) * 127.5).round().astype("uint8")'
    if low >= 0 and high <= 65535:
        scaled = '(image / white * 255).round().astype("uint8")'
        return f"{scaled}, where white is the value of white (65535 in 16 bits)"
    return None
