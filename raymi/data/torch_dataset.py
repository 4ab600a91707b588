"""Reader of map-style torch data sets: samples (image, label), read once into uint8 tensors."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymi.data.image_set import ImageSet
from raymi.data.labels import count_classes, integer_labels
from raymi.data.pixel_types import check_scale
from raymi.data.resize import fit_square, rgb_images
from raymi.errors import UserError, what_happened
from raymi.files import not_writable

_REPEATED = 4
"""First samples that are read twice, to find random transforms."""
_FLOATS = "floats in [0, 1], uint8, or a PIL image"


def read_datasets(sets: Mapping[str, object], image_size: int | None = None) -> dict[str, ImageSet]:
    """Reads data sets with the same classes.

    Args:
        sets: by part, such as "train", whose labels define the classes; it comes first.
        image_size: as in `read_dataset`.

    Returns:
        The images of each part; the names of the classes are their numbers.

    Raises:
        UserError: As `read_dataset`, or labels are not 0, 1, 2, ..., or a part has labels that the
            training set lacks.
    """
    read = {part: read_dataset(part, dataset, image_size) for part, dataset in sets.items()}
    num_classes = count_classes({Path(part): labels for part, (_, labels) in read.items()})
    names = tuple(str(label) for label in range(num_classes))
    return {part: ImageSet(images, labels, names) for part, (images, labels) in read.items()}


def read_dataset(
    part: str, dataset: object, image_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Reads all samples of a data set.

    Args:
        part: its name, for messages.
        dataset: has `len()` and samples (image, label). An image is a tensor (C, H, W), (1, H, W)
            or (H, W), an array in these layouts or (H, W, C), of floats in [0, 1] or uint8, or a
            PIL image; grey is repeated, floats are rounded to 8 bits. Labels are integers from 0.
        image_size: side in pixels to resize to with `fit_square`; None: images have one size.

    Returns:
        (N, 3, H, W) uint8 and (N,) int64.

    Raises:
        UserError: A sample is another one, or changes between two reads.
    """
    num = _length(part, dataset)
    images: list[Tensor] = []
    labels = np.empty(num, np.int64)
    for index in range(num):
        image, labels[index] = _sample(part, dataset, index)
        if index < _REPEATED and not torch.equal(image, _sample(part, dataset, index)[0]):
            raise UserError(
                f"{part} must return the same image each time, sample {index} differs at the "
                "second read: remove random transforms, raymi augments training images itself "
                "(data.flip, data.crop_padding)"
            )
        if image_size is not None:
            image = fit_square(image[None], image_size)[0]
        if index and image.shape != images[0].shape:
            raise UserError(
                f"images of {part} must have one size, got {_size(images[0])} in sample 0 and "
                f"{_size(image)} in sample {index}: set data.image_size, to which all are resized"
            )
        images.append(image)
    stacked = torch.stack(images)
    check_scale(f"images of {part}", int(stacked.max()) / 255)
    return stacked, integer_labels(Path(part), labels, num)


def check_dataset(part: str, dataset: object) -> Tensor:
    """Reads the first sample of a data set; returns its image, (3, H, W) uint8.

    Raises:
        UserError: As `read_dataset`.
    """
    _length(part, dataset)
    return _sample(part, dataset, 0)[0]


def save_datasets(sets: Mapping[str, ImageSet], folder: Path) -> None:
    """Writes each part as PART.npz into a folder, for the data set `npz`; keeps an existing one.

    Raises:
        StorageError: The folder cannot be written.
    """
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        try:
            for part, one in sets.items():
                file = temporary / f"{part}.npz"
                np.savez(file, image=one.images.numpy(), label=one.labels.numpy())
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if not folder.is_dir():  # another process may have written the same content
            raise not_writable(folder, error) from None


def _length(part: str, dataset: object) -> int:
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise UserError(f"{part} must be a data set, got a DataLoader: give its .dataset")
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise UserError(
            f"{part} must be a map-style torch Dataset of (image, label), with len() and an index, "
            f"got {type(dataset).__name__}: give one, such as TensorDataset(images, labels)"
        )
    if not len(dataset):
        raise UserError(f"{part} must have samples, got none: give at least one of each class")
    return len(dataset)


def _sample(part: str, dataset: Any, index: int) -> tuple[Tensor, int]:
    """Returns a sample as (3, H, W) uint8 and its label."""
    where = f"sample {index} of {part}"
    try:
        sample = dataset[index]
    except Exception as error:
        raise UserError(f"{where} cannot be read: {what_happened(error)}") from error
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise UserError(f"{where} must be (image, label), got {_described(sample)}: return both")
    image, label = sample
    return _image(where, image), _label(where, label)


def _label(where: str, label: Any) -> int:
    array = np.asarray(label)
    if array.dtype.kind not in "iu" or array.size != 1:
        raise UserError(
            f"the label of {where} must be an integer 0, 1, 2, ..., got {_described(label)}: "
            "return the number of the class"
        )
    return int(array.item())


def _image(where: str, image: Any) -> Tensor:
    """Returns an image as (3, H, W) uint8."""
    from PIL import Image

    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB", "1"):
            raise UserError(
                f"{where} must be a grey or RGB image, got PIL mode {image.mode}: convert it with "
                "image.convert('RGB')"
            )
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, (Tensor, np.ndarray)):
        raise UserError(f"{where} must be an image ({_FLOATS}), got {_described(image)}")
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if array.dtype.kind == "f":
        array = _eight_bits(where, array)
    if array.dtype != np.uint8:
        raise UserError(f"{where} must be {_FLOATS}, got {array.dtype}: convert it")
    try:
        return rgb_images(array[None])[0]
    except UserError:
        raise UserError(
            f"{where} must have shape (3, H, W), (1, H, W), (H, W) or (H, W, 3), got "
            f"{tuple(array.shape)}: drop further dimensions and channels"
        ) from None


def _eight_bits(where: str, array: np.ndarray) -> np.ndarray:
    """Rounds floats in [0, 1] to uint8."""
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{where} has NaN or infinite values: repair or remove it")
    if low < 0 or high > 1:
        remedy = (
            "return raw pixels without Normalize, the classifier normalises"
            if low < 0
            else "divide by 255, or return uint8"
        )
        raise UserError(f"{where} must be in [0, 1], got [{low:.4g}, {high:.4g}]: {remedy}")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _described(value: object) -> str:
    """Returns type and shape of a value, for messages."""
    shape = getattr(value, "shape", None)
    text = type(value).__name__
    if isinstance(value, (tuple, list)):
        return f"{text} of {len(value)}"
    if isinstance(value, (int, float, str)):
        return f"{text} {value!r:.40}"
    return f"{text} {tuple(shape)}" if shape is not None else text
