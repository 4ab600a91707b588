"""Data sets that are arrays already: scikit-learn's digits and the user's own .npz files."""

from __future__ import annotations

import zipfile
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
        with _open_npz(path) as arrays:
            _require_arrays(path, arrays.files)


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


def _open_npz(path: Path) -> np.lib.npyio.NpzFile:
    try:
        arrays = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable .npz file ({error}): write it again") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise UserError(f"{path} holds a single array: write it with numpy.savez(image=, label=)")
    return arrays


def _require_arrays(path: Path, found: list[str]) -> None:
    if missing := {"image", "label"} - set(found):
        raise UserError(
            f"{path} must hold arrays `image` and `label`, got {sorted(found)}: "
            f"add or rename {sorted(missing)}"
        )


def _read_npz(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    with _open_npz(path) as arrays:
        _require_arrays(path, arrays.files)
        try:
            image, label = arrays["image"], arrays["label"]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}): write it again") from error
    try:
        images = rgb_images(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not np.issubdtype(label.dtype, np.integer) or label.shape != image.shape[:1]:
        raise UserError(
            f"{path}: `label` must be integers of shape ({len(image)},), one for each image, "
            f"got {label.dtype} {label.shape}"
        )
    if len(label) == 0 or label.min() < 0:
        raise UserError(f"{path}: labels must be 0, 1, 2, ... and at least one, got {label[:5]}")
    return images, torch.from_numpy(label.astype(np.int64))
