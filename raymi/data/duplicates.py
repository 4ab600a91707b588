"""Detection of images with equal pixels in two splits of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

_PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))
_PAIRS_GENERATED = (("val", "generated"), ("test", "generated"))


def count_duplicates(sets: Mapping[str, Tensor]) -> dict[str, int]:
    """Counts images of one split that are also in another split, under any label.

    Args:
        sets: (N, 3, H, W) uint8 images of one size by split: `train`, `val`, `test`, and
            optionally `generated`.

    Returns:
        Numbers above 0 by pair of splits; "test/train" counts test images that are also in train.
    """
    digests = {name: _digests(images) for name, images in sets.items()}
    pairs = _PAIRS + _PAIRS_GENERATED * ("generated" in sets)
    known = {name: frozenset(digests[name]) for _, name in pairs}
    counts = {
        f"{one}/{other}": sum(digest in known[other] for digest in digests[one])
        for one, other in pairs
    }
    return {pair: count for pair, count in counts.items() if count}


def describe_duplicates(duplicates: Mapping[str, int], sizes: Mapping[str, int]) -> str:
    """Returns the warning about images shared by two splits; empty without any.

    Args:
        duplicates: as `count_duplicates` returns them.
        sizes: number of images of each split.
    """
    if not duplicates:
        return ""
    found = []
    for pair, count in duplicates.items():
        one, other = pair.split("/")
        found.append(f"{count} of {sizes[one]} {one} images are also in {other}")
    concerned = {pair.split("/")[0] for pair in duplicates}
    harm = {
        "val": "the best epoch is chosen on training images",
        "test": "accuracies on the test set are not on unseen images",
    }
    harms = " and ".join(text for one, text in harm.items() if one in concerned)
    return f"{', '.join(found)} (equal pixels): {harms}; remove the copies from the data set"


def _digests(images: Tensor) -> list[bytes]:
    rows = images.cpu().flatten(1).contiguous().numpy()
    return [hashlib.sha256(row).digest() for row in rows]
