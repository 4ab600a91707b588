"""Data sets of arrays: scikit-learn's digits and the user's own .npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from raymi.counter_rng import random_key
from raymi.data.image_set import ImageSet
from raymi.data.labels import count_classes, require_training_images
from raymi.data.npz_file import NpzFacts, read_facts, read_images
from raymi.data.resize import rgb_images
from raymi.data.source import Parts, Request, Source
from raymi.data.stratify import hold_out
from raymi.errors import UserError

TEST_FRACTION = 0.2  # of data sets without an official test split

_NPZ_LAYOUT = (
    "a .npz file with arrays `image` and `label` (a fixed 20% of it becomes the test set), or a "
    "folder with train.npz and test.npz [and val.npz]"
)


def digits_source() -> Source:
    """Returns the reader of scikit-learn's 1,797 handwritten digits, 8x8 grey.

    Levels 0..16 become round(v * 255 / 16). Without an official split, a fixed stratified 20% is
    the test set.
    """
    return Source(
        check=lambda request: None,
        load=lambda request: _load_digits(),
    )


def npz_source() -> Source:
    """Returns the reader of arrays `image`, uint8 as in `rgb_images`, and `label`, (N,)."""
    return Source(
        check=_check_npz,
        load=_load_npz,
    )


def _load_digits() -> Parts:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = rgb_images(np.rint(bunch.images * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return with_test_split(ImageSet(images, labels, tuple(str(digit) for digit in range(10))))


def with_test_split(samples: ImageSet) -> Parts:
    """Splits a fixed stratified 20% off as the test set."""
    rest, held = hold_out(samples.labels, TEST_FRACTION, random_key("official test split"))
    train, test = samples.subset(rest), samples.subset(held)
    require_training_images(train.labels, test.labels, samples.class_names, "test")
    return Parts(train, test)


def _check_npz(request: Request) -> None:
    _facts_and_classes(_npz_files(request))


def _facts_and_classes(files: dict[str, Path]) -> tuple[dict[str, NpzFacts], int]:
    """Reads labels and image sizes by part, and the number of classes."""
    facts = {part: read_facts(path) for part, path in files.items()}
    return facts, count_classes({files[part]: one.labels for part, one in facts.items()})


def _load_npz(request: Request) -> Parts:
    files = _npz_files(request)
    facts, num_classes = _facts_and_classes(files)
    names = tuple(str(label) for label in range(num_classes))
    sets = {
        part: ImageSet(read_images(files[part], one), one.labels, class_names=names)
        for part, one in facts.items()
    }
    if "all" in sets:
        return with_test_split(sets["all"])
    return Parts(sets["train"], sets["test"], sets.get("val"))


def _npz_files(request: Request) -> dict[str, Path]:
    """Returns the files by part: `all`, or `train`, `test` and optionally `val`."""
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
