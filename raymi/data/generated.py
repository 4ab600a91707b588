"""Generated images for training batches, from one .npz file.

Such files are large: invalid ones are refused before an image is read.
"""

from __future__ import annotations

from pathlib import Path

from raymi.data.image_set import ImageSet
from raymi.data.npz_file import NpzFacts, read_facts, read_images
from raymi.errors import UserError


def check_generated(path: Path) -> None:
    """Checks the file without reading an image.

    Args:
        path: .npz file with arrays `image`, uint8 in any layout of `rgb_images`, and `label`,
            (N,) integers from 0 on.

    Raises:
        UserError: The file is missing or invalid.
    """
    _facts(path)


def read_generated(
    path: Path, class_names: tuple[str, ...], image_size: int, *, resize: bool
) -> ImageSet:
    """Reads generated images with the classes and the image size of the training set.

    Args:
        path: as in `check_generated`.
        class_names: K names; labels must be below K.
        image_size: side of the square training images, in pixels.
        resize: resize images of another size with `fit_square`, instead of refusing them.

    Raises:
        UserError: The file is invalid; raised before an image is read unless it is damaged.
    """
    facts = _facts(path)
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
    return ImageSet(read_images(path, facts, image_size), facts.labels, class_names)


def _facts(path: Path) -> NpzFacts:
    if not path.is_file():
        raise UserError(
            f"data.generated={path} is not a file: give a .npz file with arrays `image` and "
            "`label`, or leave it out"
        )
    return read_facts(path)
