"""Data sets of image files in folders: the user's own, and Tiny-ImageNet."""

from __future__ import annotations

from pathlib import Path

import torch

from raymi.data.cache import data_folder
from raymi.data.decode import decode_files
from raymi.data.file_lists import FileList, class_folders, list_images, require_all_classes
from raymi.data.image_set import ImageSet
from raymi.data.source import Parts, Request, Source
from raymi.data.stratify import first_of_each_class
from raymi.errors import UserError

_FOLDER_LAYOUT = "a folder with train/CLASS/IMAGE, test/CLASS/IMAGE [and val/CLASS/IMAGE]"
_OTHER_NAMES = ("valid", "validation", "dev")
"""Names of the folder of validation images in other tools."""

_TINY_IMAGENET = "tiny-imagenet-200"
_TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def folder_source() -> Source:
    """Returns the reader of the user's own images; sub-folders of train/ are the classes.

    test/ is required; val/, if it exists, replaces the split of train/.
    """
    return Source(
        check=_check_folder,
        load=_load_folder,
    )


def tiny_imagenet_source() -> Source:
    """Returns the reader of Tiny-ImageNet; the official validation images are the test set.

    Classes are in the order of their WordNet ids, as in `torchvision.datasets.ImageFolder`.
    """
    return Source(
        check=lambda request: _check_tiny_imagenet(_tiny_imagenet_root(request)),
        load=_load_tiny_imagenet,
    )


def _check_folder(request: Request) -> None:
    _class_names(request)


def _class_names(request: Request) -> tuple[str, ...]:
    """Checks the layout of a folder and returns the names of its classes."""
    root = request.given_root(_FOLDER_LAYOUT)
    classes: dict[str, tuple[str, ...]] = {}
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise UserError(f"{root / part} is not a folder: data.root must be {_FOLDER_LAYOUT}")
        classes[part] = tuple(class_folders(root / part))
        if not classes[part]:
            raise UserError(
                f"{root / part} has no class folders: put the images of each class in a "
                "sub-folder named after it"
            )
    for name in _OTHER_NAMES:
        if (root / name).is_dir() and not (root / "val").is_dir():
            raise UserError(
                f"{root / name} would be skipped: rename it to val, or move it elsewhere"
            )
    if len(classes["train"]) == 1:
        raise UserError(
            f"{root / 'train'} has the single class {classes['train'][0]!r}: expected at least "
            "two classes"
        )
    return classes["train"]


def _load_folder(request: Request) -> Parts:
    class_names = _class_names(request)
    root = request.given_root(_FOLDER_LAYOUT)
    parts = ["train", "test"] + ["val"] * (root / "val").is_dir()
    files = [list_images(root / part, class_names) for part in parts]
    require_all_classes(files[0], class_names, root / "train")
    return Parts(*(_decode(part, class_names, request) for part in files))


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

    train = list_images(root / "train", wnids)
    require_all_classes(train, wnids, root / "train")
    return Parts(
        train=_decode(train, names, request),
        test=_decode(_annotated_files(root / "val", wnids), names, request),
    )


def _annotated_files(folder: Path, wnids: tuple[str, ...]) -> FileList:
    """Lists the images of val_annotations.txt, in its order."""
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
    """Returns the first two columns of a tab-separated file."""
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [(row[0], row[1]) for row in rows if len(row) >= 2]
