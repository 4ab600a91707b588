"""Labels of the user's own arrays: integers 0, 1, 2, ..., each with training images.

No check takes memory in proportion to the value of a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymi.errors import UserError

_SHOWN = 6
"""Labels that a message lists."""


def integer_labels(path: Path, label: np.ndarray, num_images: int) -> Tensor:
    """Checks the labels of a file and returns them.

    Args:
        path: file, for messages.
        label: array of the file.
        num_images: number of images in the file.

    Returns:
        (num_images,) int64, from 0 on.

    Raises:
        UserError: They are not `num_images` integers >= 0, or empty; the message has a
            numpy expression that converts them.
    """
    if label.dtype.kind not in "iu" or label.shape != (num_images,):
        raise UserError(
            f"{path}: `label` must be integers of shape ({num_images},), one for each image, "
            f"got {label.dtype} {label.shape}{_conversion(label, num_images)}"
        )
    if len(label) == 0:
        raise UserError(f"{path}: expected at least one image and its label, got none")
    if label.min() < 0 or label.max() > np.iinfo(np.int64).max:
        raise UserError(
            f"{path}: labels must be 0, 1, 2, ..., got {_listed(np.unique(label))}: remove images "
            f"without a class, and renumber the others with {_RENUMBER}"
        )
    return torch.from_numpy(label.astype(np.int64))


_RENUMBER = "label = numpy.unique(label, return_inverse=True)[1]"
_RENUMBER_ALL = (
    "label = numpy.searchsorted(numpy.unique(train_label), label) in each file, train_label being "
    "the labels of {train}"
)


def count_classes(labels: Mapping[Path, Tensor]) -> int:
    """Returns the number of classes of a data set.

    Args:
        labels: (N,) int64 labels >= 0 of each file, the training set's first.

    Returns:
        K; the training labels are 0 .. K-1, and other files have no further ones.

    Raises:
        UserError: Labels have gaps, a file has labels that the training set lacks, or K is 1.
    """
    sets = {path: np.unique(part.numpy()) for path, part in labels.items()}
    train, *others = sets
    found = sets[train]
    for path in others:
        lacking = np.setdiff1d(sets[path], found)
        if len(lacking):
            raise UserError(
                f"{path} has labels that {train} lacks ({_listed(lacking)}): every class needs "
                "training images, add some or remove these images"
            )
    if len(found) == 1:
        raise UserError(f"{train}: all labels are {found[0]}: expected at least two classes")
    num_missing = int(found[-1]) + 1 - len(found)
    if num_missing:
        how = _RENUMBER_ALL.format(train=train.name) if others else _RENUMBER
        raise UserError(
            f"{train}: labels must be 0, 1, 2, ... without gaps, got {_listed(found)} "
            f"({len(found)} labels); {_missing(found, num_missing)} of 0..{found[-1]} have no "
            f"images: renumber them with {how}"
        )
    return len(found)


def require_training_images(
    train: Tensor, others: Tensor, names: tuple[str, ...], part: str
) -> None:
    """Refuses a split that leaves a class without training images.

    Args:
        train: (N,) int64 labels of the training side.
        others: (M,) int64 labels of the other side.
        names: names of the classes.
        part: name of the other side, for the message.

    Raises:
        UserError: A class has no training images left.
    """
    left = torch.bincount(train, minlength=len(names))
    taken = torch.bincount(others, minlength=len(names))
    lost = [name for name, a, b in zip(names, left, taken, strict=True) if a == 0 < b]
    if lost:
        raise UserError(
            f"no training images are left of {len(lost)} classes ({', '.join(lost[:_SHOWN])}) "
            f"after the {part} set was split off: give at least 2 images of each, or remove "
            "these classes"
        )


def _conversion(label: np.ndarray, num_images: int) -> str:
    """Returns the remedy for labels of another type or shape, as the end of a message."""
    finite = label.dtype.kind != "f" or bool(np.isfinite(label).all())
    integral = label.dtype.kind in "biu" or (
        label.dtype.kind == "f" and finite and bool((np.floor(label) == label).all())
    )
    if label.ndim == 2 and label.shape[0] == num_images and label.dtype.kind in "biuf":
        if label.shape[1] > 1:
            return ": if its columns are the classes, take label = label.argmax(1)"
        return ": take label = label[:, 0]" + ("" if label.dtype.kind in "iu" else ".astype(int)")
    if label.shape != (num_images,):
        if label.size == num_images:
            return ": take label = label.reshape(-1)"
        return ": write one label for each image, in the same order"
    if integral:
        return ": convert them with label = label.astype(int)"
    if label.dtype.kind in "SU":
        return ": number the names with names, label = numpy.unique(label, return_inverse=True)"
    if not finite:
        return " with NaN or infinite values: remove those images, then label.astype(int)"
    return ": they must be the numbers of classes"


def _missing(found: np.ndarray, num_missing: int) -> str:
    """Returns the first missing labels, and their number."""
    first = np.setdiff1d(np.arange(len(found) + _SHOWN), found)[: min(_SHOWN, num_missing)]
    text = ", ".join(str(number) for number in first)
    return text if num_missing <= _SHOWN else f"{text}, ... ({num_missing} labels)"


def _listed(labels: np.ndarray) -> str:
    """Returns the first labels and the last one."""
    if len(labels) <= _SHOWN:
        return ", ".join(str(label) for label in labels)
    first = ", ".join(str(label) for label in labels[: _SHOWN - 1])
    return f"{first}, ..., {labels[-1]}"
