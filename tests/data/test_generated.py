"""Generated images: read from one .npz file, checked before an image is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymi.data import check_data, load_splits, npz_file
from raymi.data.resize import fit_square, rgb_images
from raymi.errors import UserError


def write(path: Path, num_images: int = 30, size: int = 8, **changes: Any) -> dict[str, Any]:
    """Random images of the ten digits, NHWC, as an .npz file; returns its arrays."""
    rng = np.random.default_rng(size)
    image = rng.integers(0, 256, (num_images, size, size, 3), np.uint8)
    arrays = {"image": image, "label": np.arange(num_images) % 10} | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def damage_images(path: Path) -> None:
    """Inverts a byte in the stored images, which come first in the file."""
    content = bytearray(path.read_bytes())
    content[1500] ^= 255
    path.write_bytes(bytes(content))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made.npz"


@pytest.mark.parametrize("chunk", [1, 7, 30, 8192])
def test_images_and_labels_equal_the_file(path, chunk, monkeypatch):
    monkeypatch.setattr(npz_file, "CHUNK", chunk)
    arrays = write(path)
    check_data("digits", generated=path)
    made = load_splits("digits", generated=str(path)).generated
    assert torch.equal(made.images, torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2))
    assert made.labels.tolist() == arrays["label"].tolist()
    assert made.images.is_contiguous()
    assert made.class_names == tuple("0123456789")
    assert len(made.digest) == 64


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW", "Fortran"])
def test_every_layout_and_compression_gives_the_same_images(path, save, layout):
    image = write(path)["image"]
    image = {
        "NHWC": image,
        "NCHW": np.ascontiguousarray(image.transpose(0, 3, 1, 2)),
        "NHW": np.ascontiguousarray(image[..., 0]),
        "Fortran": np.asfortranarray(image),
    }[layout]
    save(path, image=image, label=np.zeros(30, np.int8))
    made = load_splits("digits", generated=path).generated
    assert torch.equal(made.images, rgb_images(image))
    assert made.labels.dtype == torch.int64


def test_other_sizes_are_resized_where_image_size_is_set(path, monkeypatch):
    monkeypatch.setattr(npz_file, "CHUNK", 7)
    image = write(path, size=11)["image"]
    splits = load_splits("digits", image_size=16, generated=path)
    assert splits.image_size == 16
    assert torch.equal(splits.generated.images, fit_square(rgb_images(image), 16))


def test_generated_images_change_no_split(path):
    write(path)
    plain, mixed = load_splits("digits", limit=99), load_splits("digits", limit=99, generated=path)
    assert plain.generated is None
    assert len(mixed.generated) == 30
    for part in ("train", "val", "test"):
        assert getattr(plain, part).digest == getattr(mixed, part).digest
    assert (plain.mean, plain.std) == (mixed.mean, mixed.std)


@pytest.mark.parametrize("function", [check_data, load_splits])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, r"must hold arrays .* got \['label'\]: add or rename \['image'\]"),
        ({"label": None}, r"must hold arrays .* got \['image'\]: add or rename \['label'\]"),
        (
            {"image": np.zeros((30, 8, 8, 3))},
            "images must be uint8 in 0..255, got float64 from 0 to 0: convert",
        ),
        ({"image": np.zeros((30, 64), np.uint8)}, r"images must have shape .* got \(30, 64\)"),
        ({"image": np.zeros(30, object)}, "`image` is an array of Python objects"),
        ({"label": np.zeros(30)}, r"`label` must be integers of shape \(30,\).* got float64"),
        (
            {"label": np.zeros(29, int)},
            r"`label` must be integers of shape \(30,\).* got int64 \(29,\)",
        ),
        (
            {"label": np.full(30, -1)},
            "labels must be 0, 1, 2, .* got -1: remove images",
        ),
        ({"label": np.array([None] * 30)}, "`label` is an array of Python objects"),
        ({"num_images": 0}, "expected at least one image and its label, got none"),
    ],
)
def test_an_invalid_file_is_refused_before_loading(path, function, changes, message):
    write(path, **changes)
    with pytest.raises(UserError, match=rf"made\.npz:? {message}"):
        function("cifar10", path.parent / "nothing-here", generated=path)


@pytest.mark.parametrize("function", [check_data, load_splits])
def test_a_missing_file_a_folder_and_another_format_are_refused(path, function):
    for given in (path, path.parent):
        with pytest.raises(UserError, match=rf"data.generated={given} is not a file: give"):
            function("digits", generated=given)
    path.write_text("hello")
    with pytest.raises(UserError, match=r"made\.npz is not a readable \.npz file"):
        function("digits", generated=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.full(30, 10)}, "labels must be 0..9, the classes of the data set, got 10"),
        ({"size": 11}, "must be 8x8 like the training images, got 11x11: set data.image_size"),
        ({"image": np.zeros((30, 40, 8, 3), np.uint8)}, "must be 8x8 .* got 8x40"),
    ],
)
def test_a_mismatch_with_the_data_set_is_refused_before_reading_images(path, changes, message):
    """Reading the images would fail, as they are damaged."""
    write(path, **changes)
    damage_images(path)
    check_data("digits", generated=path)
    with pytest.raises(UserError, match=rf"made\.npz: .*{message}"):
        load_splits("digits", generated=path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_pixels_are_one_error(path, save):
    arrays = write(path)
    save(path, **arrays)
    damage_images(path)
    with pytest.raises(UserError, match=r"made\.npz is damaged .*write it again"):
        load_splits("digits", generated=path)
