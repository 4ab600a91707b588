"""Interface of the readers of single data sets, which `load_splits` calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from raymi.data.image_set import ImageSet
from raymi.errors import UserError


@dataclass(frozen=True)
class Request:
    """Requested data set.

    Args:
        name: name of the data set.
        root: its file or folder; None: raymi's folder of data sets.
        image_size: side in pixels; None: the native size.
        limit: number of training images, and of test images, that will be used; None: all.
        download: download missing files.
    """

    name: str
    root: Path | None
    image_size: int | None
    limit: int | None
    download: bool

    def given_root(self, expected: str) -> Path:
        """Returns `root` for data sets of the user; raises UserError if it is missing."""
        if self.root is None:
            raise UserError(f"data set {self.name!r} needs data.root: give {expected}")
        if not self.root.exists():
            raise UserError(f"data.root={self.root} does not exist: give {expected}")
        return self.root


class Parts(NamedTuple):
    """Official parts of a data set; `val` is None if it must be split off `train`."""

    train: ImageSet
    test: ImageSet
    val: ImageSet | None = None


@dataclass(frozen=True)
class Source:
    """Reader of a data set.

    Args:
        check: raises UserError for faults that it can find without reading an image.
        load: reads all images. It may apply `image_size` and `limit`, to save time and memory;
            `load_splits` applies both in any case.
    """

    check: Callable[[Request], None]
    load: Callable[[Request], Parts]
