"""Data sets that are image files in folders: the user's own, and Tiny-ImageNet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from raymi.data.cache import data_folder
from raymi.data.decode import decode_files
from raymi.data.image_set import ImageSet
from raymi.data.source import Parts, Request, Source
from raymi.data.stratify import first_of_each_class
from raymi.errors import UserError

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"]
)

_FOLDER_LAYOUT = "a folder with train/CLASS/IMAGE, test/CLASS/IMAGE [and val/CLASS/IMAGE]"
_TINY_IMAGENET = "tiny-imagenet-200"
_TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


class FileList(NamedTuple):
    """Image files and the number of the class of each."""

    paths: list[Path]
    labels: list[int]


def folder_source() -> Source:
    """The user's own images: the sub-folders of train/ are the classes, in alphabetical order.

    test/ is required; val/, where it exists, is used instead of a split of train/.
    """
    return Source(
        description="your own images: a folder with train/CLASS/, test/CLASS/ [and val/CLASS/]",
        check=_check_folder,
        load=_load_folder,
    )


def tiny_imagenet_source() -> Source:
    """Tiny-ImageNet in its own layout; the official validation images are the test set.

    Classes are in the order of their WordNet ids, as `torchvision.datasets.ImageFolder` has them.
    """
    return Source(
        description="Tiny-ImageNet, 100,000 + 10,000 images, 64x64 RGB, 200 classes (no download)",
        check=lambda request: _check_tiny_imagenet(_tiny_imagenet_root(request)),
        load=_load_tiny_imagenet,
    )


def _check_folder(request: Request) -> None:
    root = request.given_root(_FOLDER_LAYOUT)
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise UserError(f"{root / part} is not a folder: data.root must be {_FOLDER_LAYOUT}")
        if not _class_folders(root / part):
            raise UserError(
                f"{root / part} has no class folders: put the images of each class in a "
                "sub-folder named after it"
            )


def _load_folder(request: Request) -> Parts:
    _check_folder(request)
    root = request.given_root(_FOLDER_LAYOUT)
    class_names = _class_folders(root / "train")
    parts = ["train", "test"] + ["val"] * (root / "val").is_dir()
    files = [_files_of_classes(root / part, class_names) for part in parts]
    _require_all_classes(files[0], class_names, root / "train")
    return Parts(*(_decode(part, class_names, request) for part in files))


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )


def _files_of_classes(folder: Path, class_names: tuple[str, ...]) -> FileList:
    """All images below `folder`/CLASS, class by class, each in alphabetical order."""
    unknown = sorted(set(_class_folders(folder)) - set(class_names))
    if unknown:
        raise UserError(
            f"{folder} has folders of unknown classes ({', '.join(unknown[:5])}): the classes are "
            "the folders of train/, and for Tiny-ImageNet the lines of wnids.txt"
        )
    files = FileList([], [])
    for label, name in enumerate(class_names):
        found = _images_below(folder / name)
        files.paths.extend(found)
        files.labels.extend([label] * len(found))
    if not files.paths:
        raise UserError(f"{folder} has no images; known are {' '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def _require_all_classes(files: FileList, class_names: tuple[str, ...], folder: Path) -> None:
    present = set(files.labels)
    empty = [name for label, name in enumerate(class_names) if label not in present]
    if empty:
        raise UserError(
            f"{folder} has no images of {len(empty)} classes ({', '.join(empty[:5])}): "
            "every class needs training images"
        )


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        Path(where, name)
        for where, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    )


def _decode(files: FileList, class_names: tuple[str, ...], request: Request) -> ImageSet:
    labels = torch.tensor(files.labels, dtype=torch.int64)
    paths = files.paths
    if request.limit is not None:
        chosen = first_of_each_class(labels, request.limit)
        labels, paths = labels[chosen], [paths[i] for i in chosen.tolist()]
    return ImageSet(decode_files(paths, request.image_size), labels, class_names)


def _tiny_imagenet_root(request: Request) -> Path:
    root = request.root or data_folder()
    return root if (root / "wnids.txt").is_file() else root / _TINY_IMAGENET


def _check_tiny_imagenet(root: Path) -> None:
    for needed in ("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt"):
        if not (root / needed).exists():
            raise UserError(
                f"{root / needed} does not exist: unpack {_TINY_IMAGENET_URL} so that {root}/ has "
                "wnids.txt, words.txt, train/ and val/, or point data.root at the unpacked folder"
            )


def _load_tiny_imagenet(request: Request) -> Parts:
    root = _tiny_imagenet_root(request)
    _check_tiny_imagenet(root)
    wnids = tuple(sorted((root / "wnids.txt").read_text(encoding="utf-8").split()))
    words = dict(_table(root / "words.txt"))
    names = tuple(words.get(wnid, wnid).split(",")[0] for wnid in wnids)

    train = _files_of_classes(root / "train", wnids)
    _require_all_classes(train, wnids, root / "train")
    return Parts(
        train=_decode(train, names, request),
        test=_decode(_annotated_files(root / "val", wnids), names, request),
    )


def _annotated_files(folder: Path, wnids: tuple[str, ...]) -> FileList:
    """The images of val_annotations.txt, in its order."""
    annotations = folder / "val_annotations.txt"
    number = {wnid: label for label, wnid in enumerate(wnids)}
    try:
        rows = [(folder / "images" / name, number[wnid]) for name, wnid in _table(annotations)]
    except KeyError as error:
        raise UserError(
            f"{annotations} names class {error}, which wnids.txt lacks: unpack "
            f"{_TINY_IMAGENET_URL} again"
        ) from error
    return FileList([path for path, _ in rows], [label for _, label in rows])


def _table(path: Path) -> list[tuple[str, str]]:
    """The first two columns of a tab-separated file."""
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [(row[0], row[1]) for row in rows if len(row) >= 2]
