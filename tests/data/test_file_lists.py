"""Every image file of a folder data set is counted once, or one error names it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raymi.data import check_data, load_splits
from raymi.data.file_lists import class_folders
from raymi.errors import UserError


@pytest.fixture
def folder(tmp_path, write_images):
    """6 + 3 images of each of two classes, no two equal."""
    write_images(tmp_path / "set" / "train", "cat dog", 6)
    write_images(tmp_path / "set" / "test", "cat dog", 3, seed=1)
    return tmp_path / "set"


def link_to_the_same_class(root: Path) -> None:
    (root / "train" / "cat" / "more").symlink_to(root / "train" / "cat")


def link_to_a_parent(root: Path) -> None:
    (root / "train" / "cat" / "loop").symlink_to("..")


def link_to_the_set(root: Path) -> None:
    (root / "train" / "cat" / "loop").symlink_to(root)


def links_in_a_circle(root: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (root / "outside" / name).mkdir(parents=True)
        (root / "outside" / name / other).symlink_to(root / "outside" / other)
    (root / "train" / "cat" / "a").symlink_to(root / "outside" / "a")


def link_to_another_class(root: Path) -> None:
    (root / "train" / "cat" / "more").symlink_to(root / "train" / "dog")


def class_that_is_another_one(root: Path) -> None:
    (root / "train" / "dog2").symlink_to("dog")


def class_that_is_the_part(root: Path) -> None:
    (root / "train" / "all").symlink_to(".")


def link_to_an_image_of_another_class(root: Path) -> None:
    (root / "train" / "cat" / "x.png").symlink_to("../dog/0.png")


def hard_link(root: Path) -> None:
    os.link(root / "train" / "cat" / "0.png", root / "train" / "cat" / "copy.png")


def two_links_to_a_file_outside(root: Path) -> None:
    shutil.copy(root / "train" / "cat" / "0.png", root / "outside.png")
    for name in ("x", "y"):
        (root / "train" / "dog" / f"{name}.png").symlink_to(root / "outside.png")


@pytest.mark.parametrize(
    "change",
    [
        link_to_the_same_class, link_to_a_parent, link_to_the_set, links_in_a_circle,
        link_to_another_class, class_that_is_another_one, class_that_is_the_part,
        link_to_an_image_of_another_class, hard_link, two_links_to_a_file_outside,
    ],
)  # fmt: skip
def test_duplicate_images_are_refused(change: Callable[[Path], None], folder):
    change(folder)
    with pytest.raises(UserError, match=r"are the same (file|folder), which would count twice"):
        load_splits("folder", folder)


def test_links_to_images_outside_are_images(folder, tmp_path):
    expected = load_splits("folder", folder)
    for part in ("train", "test"):
        shutil.move(folder / part / "cat", tmp_path / part)
    (folder / "train" / "cat").symlink_to(tmp_path / "train")
    (folder / "test" / "cat").mkdir()
    for path in (tmp_path / "test").iterdir():
        (folder / "test" / "cat" / path.name).symlink_to(path)
    found = load_splits("folder", folder)
    assert (found.train.digest, found.test.digest) == (expected.train.digest, expected.test.digest)


def dangling_image(root: Path) -> None:
    (root / "train" / "cat" / "x.png").symlink_to("nowhere.png")


def dangling_folder(root: Path) -> None:
    (root / "train" / "cat" / "x").symlink_to("nowhere")


def dangling_class(root: Path) -> None:
    (root / "train" / "x").symlink_to("nowhere")


def link_to_itself(root: Path) -> None:
    (root / "train" / "cat" / "x.png").symlink_to("x.png")


def pipe(root: Path) -> None:
    os.mkfifo(root / "train" / "cat" / "x.png")


def empty_file(root: Path) -> None:
    (root / "train" / "cat" / "x.png").touch()


def other_format(root: Path) -> None:
    (root / "train" / "cat" / "x.HEIC").write_text("an image of a phone")


def array(root: Path) -> None:
    np.save(root / "train" / "cat" / "x.npy", np.zeros((8, 8, 3), np.uint8))


def image_beside_classes(root: Path) -> None:
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "x.png")


def image_of_another_suffix(root: Path) -> None:
    for suffix in ("GIF", "JPEG", "PNG", "TIFF", "WEBP"):
        path = root / "train" / "cat" / "x.1"
        Image.new("RGB", (8, 8)).save(path, suffix)
        with pytest.raises(UserError, match=r"x\.1 is an image without the suffix"):
            load_splits("folder", root)
    path.rename(root / "train" / "cat" / "x")


def image_without_suffix_beside_classes(root: Path) -> None:
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (image_of_another_suffix, "is an image without the suffix of one.*rename it"),
        (image_without_suffix_beside_classes, "belongs to no class"),
        (dangling_image, "is a broken link"),
        (dangling_folder, "is a broken link"),
        (dangling_class, "is a broken link"),
        (link_to_itself, "is a broken link"),
        (pipe, "not a regular file"),
        (empty_file, "empty"),
        (other_format, "an unsupported format: convert it to PNG"),
        (array, "unsupported format"),
        (image_beside_classes, "belongs to no class"),
    ],
)
def test_unreadable_files_are_refused_by_name(change, message, folder):
    change(folder)
    with pytest.raises(UserError, match=rf"/x\S* .*{message}"):
        load_splits("folder", folder)


def test_hidden_files_and_folders_are_skipped(folder):
    expected = load_splits("folder", folder).train.digest
    hidden = folder / "train" / "cat" / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(folder / "train" / "cat" / "0.png", hidden / "0-checkpoint.png")
    (folder / "train" / ".broken").symlink_to("nowhere")
    assert load_splits("folder", folder).train.digest == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_unreadable_folders_are_named(folder):
    (folder / "train" / "cat" / "more").mkdir(mode=0)
    with pytest.raises(UserError, match=r"more cannot be read .*its images would be skipped"):
        load_splits("folder", folder)


def test_file_names_that_are_not_utf_8_are_read_and_shown(folder):
    old, new = folder / "train" / "cat" / "0.png", os.fsencode(folder) + b"/train/cat/\xff\n.png"
    before = load_splits("folder", folder, val_fraction=0)
    os.rename(os.fsencode(old), new)
    after = load_splits("folder", folder, val_fraction=0)
    assert sorted(i.numpy().tobytes() for i in after.train.images) == sorted(
        i.numpy().tobytes() for i in before.train.images
    )
    with open(new, "wb") as file:
        file.write(b"broken")
    with pytest.raises(UserError, match=r"train/cat/\\udcff\\n.png cannot be read") as caught:
        load_splits("folder", folder)
    str(caught.value).encode()


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b"\x1b[31mred"])
def test_class_names_of_other_bytes_or_control_characters_are_refused(folder, name):
    for part in ("train", "test"):
        os.rename(folder / part / "cat", os.fsencode(folder / part) + b"/" + name)
    for function in (check_data, load_splits):
        with pytest.raises(
            UserError, match="control characters, or not in UTF-8: rename this class"
        ) as caught:
            function("folder", folder)
        str(caught.value).encode()


def test_class_names_are_compared_in_composed_unicode(folder):
    (folder / "train" / "cat").rename(folder / "train" / "caf\u00e9")
    (folder / "test" / "cat").rename(folder / "test" / "cafe\u0301")
    check_data("folder", folder)
    splits = load_splits("folder", folder)
    assert splits.train.class_names == ("caf\u00e9", "dog")
    assert torch.bincount(splits.test.labels).tolist() == [3, 3]


def test_classes_that_differ_only_in_unicode_form_are_refused(folder):
    (folder / "train" / "cat").rename(folder / "train" / "caf\u00e9")
    (folder / "train" / "cafe\u0301").mkdir()
    for function in (check_data, load_splits):
        with pytest.raises(UserError, match=r"caf.*\(.*u0301.* and .*xe9.*\): merge them"):
            function("folder", folder)


def test_a_single_class_is_refused(folder):
    for part in ("train", "test"):
        shutil.rmtree(folder / part / "dog")
    for function in (check_data, load_splits):
        with pytest.raises(UserError, match="single class 'cat': expected at least two"):
            function("folder", folder)


@pytest.mark.parametrize("name", ["valid", "validation", "dev"])
def test_a_validation_folder_of_another_name_is_refused(folder, write_images, name):
    write_images(folder / name, "cat dog", 1, seed=2)
    with pytest.raises(UserError, match=rf"{name} would be skipped: rename it to val"):
        check_data("folder", folder)
    write_images(folder / "val", "cat dog", 1, seed=3)
    check_data("folder", folder)


def test_class_folders_are_in_alphabetical_order(tmp_path):
    for name in ("b", "a", "B", "z", "\u00e9", "10", "9"):
        (tmp_path / name).mkdir()
    assert list(class_folders(tmp_path)) == ["10", "9", "B", "a", "b", "z", "\u00e9"]
