from __future__ import annotations

import shutil

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from raymi.data import check_data, load_splits
from raymi.data import decode as decode_module
from raymi.errors import UserError


@pytest.fixture
def folder(tmp_path, write_images):
    """20 + 5 images of each of two classes."""
    write_images(tmp_path / "set" / "train", "cat dog", 20)
    write_images(tmp_path / "set" / "test", "cat dog", 5, seed=1)
    return tmp_path / "set"


def test_a_folder_has_the_pixels_of_its_files(folder):
    check_data("folder", folder)
    splits = load_splits("folder", folder, val_fraction=0)
    assert splits.train.class_names == ("cat", "dog")
    assert splits.test.labels.tolist() == [0] * 5 + [1] * 5
    pixels = np.asarray(Image.open(folder / "test" / "dog" / "3.png"))
    assert torch.equal(splits.test.images[8].permute(1, 2, 0), torch.tensor(pixels))


def test_a_val_folder_replaces_the_split(folder, write_images):
    assert len(load_splits("folder", folder, val_fraction=0.25).val) == 10
    write_images(folder / "val", "cat dog", 3, seed=2)
    splits = load_splits("folder", folder, val_fraction=0.25)
    assert (len(splits.train), len(splits.val)) == (40, 6)


def test_other_files_are_ignored_and_grey_becomes_rgb(folder):
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    (folder / "train" / "cat" / "._0.png").write_text("not an image")
    (folder / "train" / ".hidden").mkdir()
    Image.new("L", (8, 8), 99).save(folder / "train" / "cat" / "deeper.BMP")
    splits = load_splits("folder", folder, val_fraction=0)
    assert len(splits.train) == 41
    assert (splits.train.images == 99).flatten(1).all(1).sum() == 1


def test_files_are_decoded_once_until_one_changes(folder, monkeypatch):
    decoded = []
    decode_one = decode_module.decode_one

    def counted(path, image_size):
        decoded.append(path)
        return decode_one(path, image_size)

    monkeypatch.setattr(decode_module, "decode_one", counted)
    first = load_splits("folder", folder)
    assert set(decoded) == set(folder.rglob("*.png"))
    decoded.clear()
    again = load_splits("folder", folder)
    assert decoded == []
    assert (again.train.digest, again.test.digest) == (first.train.digest, first.test.digest)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "test" / "cat" / "0.png")
    assert load_splits("folder", folder).test.digest != first.test.digest
    assert set(decoded) == set((folder / "test").rglob("*.png"))


def test_the_cache_depends_on_the_image_size(folder, own_cache):
    native = load_splits("folder", folder)
    assert load_splits("folder", folder, image_size=6).image_size == 6
    large = load_splits("folder", folder, image_size=12)
    assert load_splits("folder", folder).train.digest == native.train.digest
    shutil.rmtree(own_cache)
    assert load_splits("folder", folder, image_size=12).train.digest == large.train.digest


def test_an_unwritable_cache_changes_nothing(folder, monkeypatch):
    cached = load_splits("folder", folder)
    monkeypatch.setenv("RAYMI_CACHE", str(folder / "train" / "cat" / "0.png"))
    assert load_splits("folder", folder).train.digest == cached.train.digest


def test_limit_selects_the_same_images_as_without_early_limiting(folder):
    everything = load_splits("folder", folder, val_fraction=0)
    (folder / "train" / "dog" / "9.png").write_text("corrupt, but not among the first")
    few = load_splits("folder", folder, val_fraction=0, limit=6)
    assert few.train.digest == everything.train.subset([0, 1, 2, 20, 21, 22]).digest
    assert few.test.digest == everything.test.subset([0, 1, 2, 5, 6, 7]).digest


def test_images_of_different_sizes_need_image_size(folder, write_images):
    write_images(folder / "train", "emu", 2, size=(20, 10))
    with pytest.raises(UserError, match=r"8x8 in .*png, 20x10 in .*png\): set data.image_size"):
        load_splits("folder", folder)
    splits = load_splits("folder", folder, image_size=10, val_fraction=0)
    assert splits.train.images.shape == (42, 3, 10, 10)
    pixels = np.asarray(Image.open(folder / "train" / "emu" / "1.png"))
    assert torch.equal(splits.train.images[-1].permute(1, 2, 0), torch.tensor(pixels[:, 5:15]))


def test_parts_of_different_sizes_need_image_size(folder, write_images):
    shutil.rmtree(folder / "test")
    write_images(folder / "test", "cat", 2, size=(6, 6))
    with pytest.raises(UserError, match=r"8x8 in train, .*6x6 in test: set data.image_size"):
        load_splits("folder", folder)
    assert load_splits("folder", folder, image_size=6).test.images.shape == (2, 3, 6, 6)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("content", ["empty", "text", "truncated"])
def test_a_corrupt_image_is_one_error_that_names_the_file(folder, suffix, content):
    path = folder / "train" / "dog" / f"bad{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(path)
    intact = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>", "truncated": intact[:-40]}[content])
    with pytest.raises(UserError, match=rf"bad{suffix} cannot be read.*intact copy") as caught:
        load_splits("folder", folder)
    assert "\n" not in str(caught.value)


def test_images_larger_than_memory_are_refused(folder, monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(total=40 * 192 - 1))
    with pytest.raises(UserError, match=r"40 images of 8x8 pixels .*data.image_size"):
        load_splits("folder", folder)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(total=40 * 192))
    load_splits("folder", folder)


def test_missing_folders_are_named(tmp_path, write_images):
    for function in (check_data, load_splits):
        with pytest.raises(UserError, match=r"needs data.root.*train/CLASS"):
            function("folder")
        with pytest.raises(UserError, match="nowhere does not exist"):
            function("folder", tmp_path / "nowhere")
        with pytest.raises(UserError, match=r"train is not a folder"):
            function("folder", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        check_data("folder", tmp_path)
    write_images(tmp_path / "train", "cat", 2)
    with pytest.raises(UserError, match="test is not a folder"):
        check_data("folder", tmp_path)


def test_classes_must_have_training_images(folder, write_images):
    (folder / "train" / "emu").mkdir()
    with pytest.raises(UserError, match=r"no images of 1 classes \(emu\)"):
        load_splits("folder", folder)
    (folder / "train" / "emu").rmdir()
    write_images(folder / "test", "emu", 1)
    with pytest.raises(UserError, match=r"unknown classes \(emu\)"):
        load_splits("folder", folder)
    shutil.rmtree(folder / "test")
    (folder / "test" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"test has no images"):
        load_splits("folder", folder)


def test_tiny_imagenet_is_read_in_its_own_layout(tiny_imagenet_root):
    check_data("tiny-imagenet", tiny_imagenet_root)
    splits = load_splits("tiny-imagenet", tiny_imagenet_root)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [900, 100, 500]
    assert (splits.num_classes, splits.image_size) == (10, 64)
    assert splits.train.class_names[:3] == ("bullfrog", "Egyptian cat", "basketball")
    assert torch.bincount(splits.train.labels).tolist() == [90] * 10
    assert torch.bincount(splits.test.labels).tolist() == [50] * 10
    folder = tiny_imagenet_root / "tiny-imagenet-200" / "val"
    name, wnid = (folder / "val_annotations.txt").read_text().splitlines()[7].split("\t")[:2]
    assert splits.test.labels[7] == sorted(p.name for p in (folder / "../train").iterdir()).index(
        wnid
    )
    pixels = np.asarray(Image.open(folder / "images" / name).convert("RGB"))
    assert torch.equal(splits.test.images[7].permute(1, 2, 0), torch.tensor(pixels))


def test_tiny_imagenet_is_found_by_root_or_in_the_default_folder(tiny_imagenet_root, monkeypatch):
    itself = load_splits("tiny-imagenet", tiny_imagenet_root / "tiny-imagenet-200", limit=40)
    monkeypatch.setenv("RAYMI_DATA", str(tiny_imagenet_root))
    default = load_splits("tiny-imagenet", limit=40)
    assert itself.train.digest == default.train.digest
    assert torch.bincount(default.test.labels).tolist() == [4] * 10


def test_grey_jpegs_among_tiny_imagenet_become_rgb(tiny_imagenet_root):
    grey = [
        path
        for path in sorted(tiny_imagenet_root.rglob("train/*/images/*.JPEG"))
        if Image.open(path).mode == "L"
    ]
    assert grey, "the real data has some"
    splits = load_splits("tiny-imagenet", tiny_imagenet_root, val_fraction=0)
    flat = (splits.train.images[:, 0] == splits.train.images[:, 2]).flatten(1).all(1)
    assert flat.sum() >= len(grey)


def test_missing_tiny_imagenet_has_a_remedy(tmp_path):
    for function in (check_data, load_splits):
        with pytest.raises(UserError, match=r"wnids.txt does not exist: unpack http.*data.root"):
            function("tiny-imagenet", tmp_path)


@pytest.fixture
def tiny_imagenet_copy(tiny_imagenet_root, tmp_path):
    """A small part of it, to be damaged."""
    source, copy = tiny_imagenet_root / "tiny-imagenet-200", tmp_path / "tiny-imagenet-200"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*_?[1-9].JPEG", "*_??[1-9].JPEG"))
    listed = (source / "val" / "val_annotations.txt").read_text().splitlines(keepends=True)
    kept = [line for line in listed if (copy / "val" / "images" / line.split()[0]).is_file()]
    (copy / "val" / "val_annotations.txt").write_text("".join(kept))
    assert len(load_splits("tiny-imagenet", copy).test) == len(kept) > 0
    return copy


def test_a_missing_tiny_imagenet_file_is_named(tiny_imagenet_copy):
    missing = next((tiny_imagenet_copy / "val" / "images").iterdir())
    missing.unlink()
    with pytest.raises(UserError, match=missing.name):
        load_splits("tiny-imagenet", tiny_imagenet_copy)


def test_a_missing_tiny_imagenet_class_is_named(tiny_imagenet_copy):
    missing = next((tiny_imagenet_copy / "train").iterdir())
    shutil.rmtree(missing)
    with pytest.raises(UserError, match=rf"no images of 1 classes \({missing.name}\)"):
        load_splits("tiny-imagenet", tiny_imagenet_copy)


def test_tiny_imagenet_classes_that_wnids_lacks_are_named(tiny_imagenet_copy):
    wnids = tiny_imagenet_copy / "wnids.txt"
    removed, *others = wnids.read_text().split()
    wnids.write_text("\n".join(others))
    with pytest.raises(UserError, match=rf"unknown classes \({removed}\).*wnids.txt"):
        load_splits("tiny-imagenet", tiny_imagenet_copy)
    shutil.rmtree(tiny_imagenet_copy / "train" / removed)
    with pytest.raises(UserError, match=rf"val_annotations.txt names class '{removed}'"):
        load_splits("tiny-imagenet", tiny_imagenet_copy)
