"""Data sets that are arrays already: scikit-learn's digits and the user's own .npz files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from raymi.counter_rng import random_key
from raymi.data.image_set import ImageSet
from raymi.data.resize import rgb_images
from raymi.data.source import Parts, Request, Source
from raymi.data.stratify import hold_out
from raymi.errors import UserError

TEST_FRACTION = 0.2  # of data sets that come without an official test split

UNREADABLE = (OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise for damaged files."""

_NPZ_LAYOUT = (
    "a .npz file with arrays `image` and `label` (a fixed 20% of it becomes the test set), or a "
    "folder with train.npz and test.npz [and val.npz]"
)


def digits_source() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: levels 0..16 become round(v * 255 / 16).

    They have no official split: a stratified 20%, the same for ever, is the test set.
    """
    return Source(
        description="1,797 handwritten digits, 8x8 grey, that come with scikit-learn",
        check=lambda request: None,
        load=lambda request: _load_digits(),
    )


def npz_source() -> Source:
    """The user's own arrays: `image`, uint8 in any layout of `rgb_images`, and `label`, (N,)."""
    return Source(
        description="your own arrays `image` and `label` in one .npz file, or in a folder of them",
        check=_check_npz,
        load=_load_npz,
    )


def _load_digits() -> Parts:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = rgb_images(np.rint(bunch.images * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return _with_test_split(ImageSet(images, labels, tuple(str(digit) for digit in range(10))))


def _with_test_split(samples: ImageSet) -> Parts:
    train, test = hold_out(samples.labels, TEST_FRACTION, random_key("official test split"))
    return Parts(train=samples.subset(train), test=samples.subset(test))


def _check_npz(request: Request) -> None:
    for path in _npz_files(request).values():
        open_npz(path).close()


def _load_npz(request: Request) -> Parts:
    pixels = {part: _read_npz(path) for part, path in _npz_files(request).items()}
    num_classes = max(int(labels.max()) for _, labels in pixels.values()) + 1
    names = tuple(str(label) for label in range(num_classes))
    sets = {part: ImageSet(*arrays, class_names=names) for part, arrays in pixels.items()}
    if "all" in sets:
        return _with_test_split(sets["all"])
    return Parts(sets["train"], sets["test"], sets.get("val"))


def _npz_files(request: Request) -> dict[str, Path]:
    """The files by part: `all` alone, or `train`, `test` and perhaps `val`."""
    root = request.given_root(_NPZ_LAYOUT)
    if root.is_file():
        return {"all": root}
    files = {part: root / f"{part}.npz" for part in ("train", "test", "val")}
    for part in ("train", "test"):
        if not files[part].is_file():
            raise UserError(f"{files[part]} does not exist: data.root must be {_NPZ_LAYOUT}")
    if not files["val"].is_file():
        del files["val"]
    return files


def open_npz(path: Path) -> np.lib.npyio.NpzFile:
    """An open file that has arrays `image` and `label`, neither of them read.

    Raises: UserError, if it is not there, not readable, or lacks an array.
    """
    try:
        arrays = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
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


def read_array(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """An array of an open file; UserError if it is damaged."""
    try:
        return arrays[name]
    except UNREADABLE as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """The error for a file that opened and could not be read to its end."""
    return UserError(f"{path} is damaged ({error}): write it again")


def checked_labels(path: Path, label: np.ndarray, num_images: int) -> torch.Tensor:
    """(num_images,) int64; UserError unless they are that many integers from 0 on, at least one."""
    if not np.issubdtype(label.dtype, np.integer) or label.shape != (num_images,):
        raise UserError(
            f"{path}: `label` must be integers of shape ({num_images},), one for each image, "
            f"got {label.dtype} {label.shape}"
        )
    if len(label) == 0 or label.min() < 0:
        raise UserError(f"{path}: labels must be 0, 1, 2, ... and at least one, got {label[:5]}")
    return torch.from_numpy(label.astype(np.int64))


def _read_npz(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    with open_npz(path) as arrays:
        image, label = (read_array(path, arrays, name) for name in ("image", "label"))
    try:
        images = rgb_images(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return images, checked_labels(path, label, len(images))
