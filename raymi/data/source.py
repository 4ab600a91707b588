"""The contract between `load_splits` and the readers of the single data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from raymi.data.image_set import ImageSet
from raymi.errors import UserError


@dataclass(frozen=True)
class Request:
    """Data set that was asked for.

    Args:
        name: of the data set.
        root: file or folder where it lies; None for the place where raymi keeps data sets.
        image_size: side in pixels; None for the native size.
        limit: number of training images, and of test images, that will be used; None for all.
        download: whether missing files may be downloaded.
    """

    name: str
    root: Path | None
    image_size: int | None
    limit: int | None
    download: bool

    def given_root(self, expected: str) -> Path:
        """`root`, for data sets that are the user's own; UserError if it is not there."""
        if self.root is None:
            raise UserError(f"data set {self.name!r} needs data.root: give {expected}")
        if not self.root.exists():
            raise UserError(f"data.root={self.root} does not exist: give {expected}")
        return self.root


class Parts(NamedTuple):
    """Official parts of a data set, as read; `val` is None where it has to be split off."""

    train: ImageSet
    test: ImageSet
    val: ImageSet | None = None


@dataclass(frozen=True)
class Source:
    """Reader of a data set.

    Args:
        check: raises UserError for faults that show without reading any image.
        load: reads everything. A reader of files may apply `image_size` and `limit` by itself, to
            save time and memory; `load_splits` applies both in any case.
    """

    check: Callable[[Request], None]
    load: Callable[[Request], Parts]
