"""Reader of one image file as 8-bit RGB; ambiguous files are refused.

Grey of 16 bits is scaled by 255/65535 (TIFF of 12 bits by 255/4095), floats in [0, 1] by 255.
Palettes, CMYK and YCbCr are converted, EXIF's orientation is applied, colour profiles are not.
Refused are transparent pixels, several frames, and numbers without a known scale.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raymi.errors import UserError
from raymi.formatting import printable

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 100_000_000
"""Pixels of the largest image that is decoded."""

_CONVERTED = ("1", "L", "P", "RGB", "RGBX", "RGBA", "RGBa", "LA", "La", "PA", "CMYK", "YCbCr")
"""Pillow's modes of 8 bits or fewer that have a defined RGB form."""

_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "PPM", "TIFF", "WEBP", "GIF")
"""Pillow's readers of supported formats (JPEG reads MPO too); others start Ghostscript."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""

_REMEDY = (
    "replace it by an intact copy, saved as PNG with 8 bits if Pillow lacks its format, or remove "
    "it from the data set"
)


class Decoded(NamedTuple):
    """Decoded image file.

    Args:
        image: mode RGB, upright.
        brightest: largest value as a share of full scale for files of more than 8 bits, else None.
    """

    image: Image
    brightest: float | None


def read_image(path: Path) -> Decoded:
    """Reads one image file.

    Raises:
        UserError: The file is damaged, too large, or has no defined conversion to RGB.
    """
    from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401  (registers readers)

    try:
        with Image.open(path, formats=_FORMATS) as image:
            _require_one_image_of_usual_size(image, path)
            deep = _has_more_than_8_bits(image)
            image.load()
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return _from_numbers(image, path)
            return _from_bytes(image, deep, path)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _refused(path, f"is too large ({error})", "scale it down") from error
    except Exception as error:  # a damaged file can raise anything in Pillow's readers
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """Returns the error for a file that is not an intact image."""
    return UserError(f"{printable(path)} cannot be read as an image ({error}): {_REMEDY}")


def _refused(path: Path, why: str, remedy: str) -> UserError:
    return UserError(f"{printable(path)} {why}: {remedy}, or remove it from the data set")


def _require_one_image_of_usual_size(image: Image, path: Path) -> None:
    num_pixels = image.width * image.height
    if num_pixels > MAX_PIXELS:
        raise _refused(
            path,
            f"has {image.width}x{image.height} pixels, expected at most {MAX_PIXELS:,}",
            "scale it down",
        )
    # JPEG files of phones (MPO) have previews and depth maps behind their first image.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise _refused(
            path,
            f"has {frames} frames or pages, expected one image",
            "save the frames that are meant as files of their own",
        )


def _has_more_than_8_bits(image: ImageFile) -> bool:
    """Returns True if the file has more than 8 bits of a colour; call it before loading."""
    stored = repr(image.tile)  # has the layout in the file, such as RGB;16B
    if any(layout in stored for layout in (";16B", ";16L", ";16N")):
        return True
    layouts = [tile[-1] for tile in image.tile if tile[0] in ("ppm", "ppm_plain")]
    return any(isinstance(layout, tuple) and layout[1] > 255 for layout in layouts)  # its white


def _from_numbers(image: Image, path: Path) -> Decoded:
    """Scales grey of one number per pixel to 8 bits."""
    from PIL import Image as images

    values = np.asarray(image)
    if image.mode == "F":
        full = 1.0
        if not (values.min() >= 0 and values.max() <= 1):  # also false for NaN
            raise _refused(
                path,
                f"has floating-point pixels (mode F) from {values.min():.6g} to "
                f"{values.max():.6g}, expected 0 to 1",
                "scale it",
            )
    else:
        full = _full_scale(image, path)
    if (values == image.info.get("transparency", -1)).any():
        raise _transparent(image, path)
    share = values.astype(np.float64) / full
    brightest = float(share.max())
    if _tag(image, _PHOTOMETRIC) == 0:  # TIFF's WhiteIsZero, which Pillow leaves as it is
        share = 1 - share
    grey = images.fromarray(np.rint(share * 255).astype(np.uint8))
    return Decoded(_upright(grey, image).convert("RGB"), brightest)


def _full_scale(image: Image, path: Path) -> float:
    """Returns the value of white of an integer grey image."""
    bits = _tag(image, _BITS_PER_SAMPLE) or 16
    signed = _tag(image, _SAMPLE_FORMAT) == 2
    if signed or bits > 16:
        raise _refused(
            path,
            f"has {'signed ' if signed else ''}integers of {bits} bits (mode "
            f"{image.mode}), whose scale is unknown",
            "save it with 8 or 16 unsigned bits",
        )
    return float(2**bits - 1)


def _tag(image: Image, tag: int) -> int | None:
    """Returns the first value of a tag of a TIFF file, or None."""
    value: Any = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _from_bytes(image: Image, deep: bool, path: Path) -> Decoded:
    if image.mode not in _CONVERTED or _tag(image, _SAMPLE_FORMAT) == 2:
        raise _refused(path, f"has mode {image.mode}, which has no RGB form", "save it as RGB")
    if image.mode == "P":
        palette = image.palette
        colours = len(palette.palette) // len(palette.mode) if palette else 0
        if int(np.asarray(image).max()) >= colours:
            raise _refused(
                path, f"has pixels without a colour in its palette of {colours}", "save it as RGB"
            )
    whole = image
    if image.getbands()[-1] in ("A", "a") or "transparency" in image.info:
        if deep and "transparency" in image.info:
            raise _transparent(image, path)
        whole = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        if whole.getchannel("A").getextrema() != (255, 255):
            raise _transparent(image, path)
    rgb = _upright(whole, image).convert("RGB")
    if not deep:
        return Decoded(rgb, None)
    return Decoded(rgb, float(np.asarray(rgb).max()) / 255)


def _transparent(image: Image, path: Path) -> UserError:
    return _refused(
        path,
        f"has transparent pixels (mode {image.mode}), whose colour is not defined",
        "put it on a background, as with PIL: Image.alpha_composite(Image.new('RGBA', "
        "image.size, 'white'), image.convert('RGBA')).convert('RGB')",
    )


def _upright(pixels: Image, opened: Image) -> Image:
    """Rotates pixels by the EXIF orientation of the opened file; damaged EXIF data are ignored."""
    from PIL import ExifTags, ImageOps

    with contextlib.suppress(Exception):
        pixels.getexif()[ExifTags.Base.Orientation] = opened.getexif()[ExifTags.Base.Orientation]
    return ImageOps.exif_transpose(pixels)
