"""Data sets of torchvision: CIFAR-10/100, SVHN, MNIST, Fashion-MNIST."""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import socket
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymi.data.cache import data_folder, locked_if_writable
from raymi.data.image_set import ImageSet
from raymi.data.resize import rgb_images
from raymi.data.source import Parts, Request, Source
from raymi.errors import UserError

logger = logging.getLogger(__name__)

_STALLED_AFTER = 60.0  # seconds without a byte before a download fails
_DIGITS = tuple("0123456789")
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Dataset:
    """Data set of `torchvision.datasets`.

    Args:
        cls: name of the class in torchvision.
        folder: folder of the files in root; may be empty.
        files: names of the unpacked files.
        url: address of the data set.
        class_names: names of the classes; None: torchvision's.
    """

    cls: str
    folder: str
    files: tuple[str, ...]
    url: str
    class_names: tuple[str, ...] | None = None

    def missing(self, root: Path) -> list[str]:
        """Returns the unpacked files that a folder lacks."""
        return [name for name in self.files if not (root / self.folder / name).is_file()]

    def open(self, root: Path, train: bool, download: bool = False) -> Any:
        """Returns torchvision's data set of the training or test images."""
        from torchvision import datasets

        part: dict[str, Any] = {"train": train}
        if self.cls == "SVHN":
            part = {"split": "train" if train else "test"}
        return getattr(datasets, self.cls)(root, **part, download=download)


TORCHVISION_SETS = {
    "cifar10": Dataset(
        cls="CIFAR10",
        folder="cifar-10-batches-py",
        files=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    "cifar100": Dataset(
        cls="CIFAR100",
        folder="cifar-100-python",
        files=("train", "test", "meta"),
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    "svhn": Dataset(
        cls="SVHN",
        folder="",
        files=("train_32x32.mat", "test_32x32.mat"),
        url="http://ufldl.stanford.edu/housenumbers/",
        class_names=_DIGITS,
    ),
    "mnist": Dataset(
        cls="MNIST",
        folder="MNIST/raw",
        files=_IDX_FILES,
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        class_names=_DIGITS,
    ),
    "fashion-mnist": Dataset(
        cls="FashionMNIST",
        folder="FashionMNIST/raw",
        files=_IDX_FILES,
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
}


def torchvision_sources() -> dict[str, Source]:
    """Returns the readers by name of the data set."""
    return {name: _source(dataset) for name, dataset in TORCHVISION_SETS.items()}


def _source(dataset: Dataset) -> Source:
    def check(request: Request) -> None:
        root = request.root or data_folder()
        if not request.download and dataset.missing(root):
            raise _missing_error(dataset, root, request.name, "downloading is switched off")

    def load(request: Request) -> Parts:
        root = request.root or data_folder()
        if request.download:
            _download_once(dataset, root, request.name)
        check(request)
        return Parts(train=_read(dataset, root, True), test=_read(dataset, root, False))

    return Source(check, load)


def _download_once(dataset: Dataset, root: Path, name: str) -> None:
    """Downloads missing files; one process downloads while others wait.

    Files are checked under the lock only, as another process may be unpacking them.
    """
    with locked_if_writable(root / f".{name}.lock"):
        if not dataset.missing(root):
            return
        logger.info("downloading %s to %s", name, root)
        try:
            with _download_timeout(), _no_progress_in_logs():
                for train in (True, False):
                    dataset.open(root, train, download=True)
        except (OSError, EOFError, RuntimeError, http.client.HTTPException, tarfile.TarError) as e:
            cause = " ".join(str(e).split())
            raise _missing_error(
                dataset, root, name, f"it could not be downloaded ({cause})"
            ) from e


def _read(dataset: Dataset, root: Path, train: bool) -> ImageSet:
    try:
        opened = dataset.open(root, train)
    except (OSError, EOFError, RuntimeError, ValueError, AssertionError, LookupError) as error:
        raise UserError(
            f"{root / dataset.folder} holds damaged files of {dataset.cls} ({error}): delete "
            f"{', '.join(dataset.files)} there and start again with data.download=true"
        ) from error
    targets = opened.labels if dataset.cls == "SVHN" else opened.targets
    labels = torch.as_tensor(targets, dtype=torch.int64)
    class_names = dataset.class_names or tuple(opened.classes)
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise UserError(
            f"{root / dataset.folder} has labels from {labels.min()} to {labels.max()}, expected "
            f"0 to {len(class_names) - 1}: replace its files by those of {dataset.url}"
        )
    return ImageSet(rgb_images(np.asarray(opened.data)), labels, class_names)


def _missing_error(dataset: Dataset, root: Path, name: str, why: str) -> UserError:
    return UserError(
        f"data set {name!r} is not in {root} and {why}. Set data.download=true where there is a "
        f"network, or get it from {dataset.url} and unpack it to {root / dataset.folder}/ as "
        f"{', '.join(dataset.files)}"
    )


@contextlib.contextmanager
def _download_timeout() -> Iterator[None]:
    """Sets a timeout for connections, which torchvision opens without one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALLED_AFTER)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _no_progress_in_logs() -> Iterator[None]:
    """Keeps torchvision's progress bar out of log files."""
    if sys.stderr.isatty():
        yield
    else:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
