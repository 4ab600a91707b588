"""Lists of image files in class folders: each file once, and an error for each skipped one."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from raymi.errors import UserError
from raymi.formatting import printable

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tif",
        ".tiff",
        ".webp",
        ".gif",
    ]
)

_OTHER_IMAGE_SUFFIXES = frozenset(
    [
        ".avif",
        ".heic",
        ".heif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".jxl",
        ".tga",
        ".psd",
        ".svg",
        ".exr",
        ".hdr",
        ".pfm",
        ".ico",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
        ".dcm",
        ".dicom",
        ".nii",
        ".npy",
        ".npz",
    ]
)

_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
"""First bytes of PNG, JPEG, GIF and TIFF files."""

_INVALID_IN_NAMES = ("Cs", "Cc")
"""Unicode categories of control characters and of bytes that are not UTF-8."""


class FileList(NamedTuple):
    """Image files and the class number of each."""

    paths: list[Path]
    labels: list[int]


def class_folders(folder: Path) -> dict[str, Path]:
    """Returns the class folders of a part of a data set, without hidden ones.

    Returns:
        Folders by class name in composed Unicode (NFC, as file systems differ in it), in
        alphabetical order.

    Raises:
        UserError: An image is outside of the folders, a link is broken, a name is not UTF-8, or two
            names are equal in NFC.
    """
    found: dict[str, Path] = {}
    for path in sorted(_entries(folder)):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            _require_no_image(path)
            continue
        name = unicodedata.normalize("NFC", path.name)
        if any(unicodedata.category(c) in _INVALID_IN_NAMES for c in name):
            raise UserError(
                f"{printable(path)} has a name with control characters, or not in UTF-8: rename "
                "this class"
            )
        if name in found:
            raise UserError(
                f"{folder} has two folders named {name!r}, in two Unicode forms "
                f"({found[name].name!a} and {path.name!a}): merge them into one, or "
                "rename one"
            )
        found[name] = path
    return dict(sorted(found.items()))


def list_images(folder: Path, class_names: tuple[str, ...]) -> FileList:
    """Lists all images in the class folders, by class and in alphabetical order.

    Args:
        folder: folder of a part of a data set.
        class_names: names of all classes; the part may lack some.

    Raises:
        UserError: A class is unknown, no image exists, a file or folder is reached twice, or a
            file can neither be read nor skipped.
    """
    folders = class_folders(folder)
    if unknown := sorted(set(folders) - set(class_names)):
        raise UserError(
            f"{folder} has folders of unknown classes ({', '.join(unknown[:5])}): the classes are "
            "the folders of train/, and for Tiny-ImageNet the lines of wnids.txt"
        )
    files = FileList([], [])
    seen = _Seen()
    seen.add(folder, folder.stat())
    for label, name in enumerate(class_names):
        found = sorted(_images_below(folders[name], seen)) if name in folders else []
        files.paths.extend(found)
        files.labels.extend([label] * len(found))
    if not files.paths:
        raise UserError(f"{folder} has no images; known are {' '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def require_all_classes(files: FileList, class_names: tuple[str, ...], folder: Path) -> None:
    """Refuses a training set that lacks a class."""
    present = set(files.labels)
    empty = [name for label, name in enumerate(class_names) if label not in present]
    if empty:
        raise UserError(
            f"{folder} has no images of {len(empty)} classes ({', '.join(empty[:5])}): "
            "every class needs training images"
        )


class _Seen:
    """Visited files and folders of a part of a data set, by device and inode."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], Path] = {}

    def add(self, path: Path, status: os.stat_result) -> None:
        """Refuses a path whose target was already reached through a link or a hard link."""
        if status.st_ino == 0:  # file systems without inodes
            return
        first = self._first.setdefault((status.st_dev, status.st_ino), path)
        if first is not path:
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "file"
            raise UserError(
                f"{printable(path)} and {printable(first)} are the same {kind}, which would count "
                "twice: remove one (links to files outside are fine)"
            )


def _images_below(folder: Path, seen: _Seen) -> Iterator[Path]:
    """Yields the images, without hidden files and folders (checkpoints, thumbnails)."""
    for where, folders, names in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        seen.add(Path(where), os.stat(where))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(where, name)
            if not name.startswith(".") and _is_image(path, seen):
                yield path


def _is_image(path: Path, seen: _Seen) -> bool:
    suffix = path.suffix.lower()
    if suffix in _OTHER_IMAGE_SUFFIXES:
        raise UserError(
            f"{printable(path)} has an unsupported format: convert it to PNG, or remove it from "
            "the data set"
        )
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"{printable(path)} is a broken link ({error.strerror}): remove it, or fix its target"
        ) from error
    if suffix not in IMAGE_SUFFIXES:
        if stat.S_ISREG(status.st_mode) and _has_image_content(path):
            raise UserError(
                f"{printable(path)} is an image without the suffix of one, which would be skipped: "
                f"rename it to end in one of {' '.join(sorted(IMAGE_SUFFIXES))}, or remove it"
            )
        return False
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{printable(path)} is not a regular file: remove it from the data set")
    seen.add(path, status)
    return True


def _has_image_content(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = file.read(12)
    except OSError as error:
        raise _unreadable_folder(error) from error
    return first.startswith(_SIGNATURES) or (first[:4] == b"RIFF" and first[8:] == b"WEBP")


def _require_no_image(path: Path) -> None:
    """Refuses an image or a broken link outside of the class folders."""
    if path.suffix.lower() in IMAGE_SUFFIXES | _OTHER_IMAGE_SUFFIXES or (
        path.is_file() and _has_image_content(path)
    ):
        raise UserError(
            f"{printable(path)} belongs to no class: put the images of each class in a sub-folder "
            "named after it"
        )
    if path.is_symlink() and not path.exists():
        raise UserError(f"{printable(path)} is a broken link: remove or repair it")


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise _unreadable_folder(error) from error


def _refuse_unreadable(error: OSError) -> None:
    raise _unreadable_folder(error) from error


def _unreadable_folder(error: OSError) -> UserError:
    return UserError(
        f"{printable(error.filename)} cannot be read ({error.strerror}): its images would be "
        "skipped, make it readable"
    )
