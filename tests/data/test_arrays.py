from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch

from raymi.data import check_data, load_splits
from raymi.errors import UserError


def pixels_and_labels(num_samples: int = 60, size: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(num_samples)
    image = rng.integers(0, 256, (num_samples, size, size, 3), np.uint8)
    return {"image": image, "label": np.arange(num_samples) % 3}


def test_digits_are_scikit_learns_scaled_to_255():
    from sklearn.datasets import load_digits

    splits = load_splits("digits", val_fraction=0)
    assert (len(splits.train), len(splits.test)) == (1438, 359)
    assert splits.image_size == 8
    found = torch.cat([splits.train.images, splits.test.images])
    expected = torch.tensor([[round(v * 255 / 16) for v in row] for row in load_digits().data])
    assert torch.equal(found[:, 0], found[:, 2])
    key = torch.randint(1, 2**40, (64,), generator=torch.Generator().manual_seed(0))
    found_keys = (found[:, 0].flatten(1).long() * key).sum(1)
    assert torch.equal(found_keys.sort().values, (expected * key).sum(1).sort().values)


def test_the_test_split_of_digits_is_fixed():
    first = load_splits("digits")
    other = load_splits("digits", split_seed=5, val_fraction=0.3)
    assert first.test.digest == other.test.digest
    assert torch.bincount(first.test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_one_npz_file_is_split_80_20_stratified(tmp_path, layout):
    arrays = pixels_and_labels()
    image = arrays["image"] if layout == "NHWC" else arrays["image"].transpose(0, 3, 1, 2)
    np.savez(tmp_path / "mine.npz", image=image, label=arrays["label"])
    check_data("npz", tmp_path / "mine.npz")
    splits = load_splits("npz", tmp_path / "mine.npz", val_fraction=0.25)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [36, 12, 12]
    assert torch.bincount(splits.test.labels).tolist() == [4, 4, 4]
    assert splits.num_classes == 3
    known = {row.tobytes() for row in arrays["image"].transpose(0, 3, 1, 2)}
    parts = (splits.train, splits.val, splits.test)
    served = {row.numpy().tobytes() for part in parts for row in part.images}
    assert served == known


@pytest.mark.parametrize("with_val", [False, True])
def test_a_folder_of_npz_files_keeps_its_parts(tmp_path, with_val):
    sizes = {"train": 40, "test": 10} | ({"val": 5} if with_val else {})
    for part, size in sizes.items():
        np.savez(tmp_path / f"{part}.npz", **pixels_and_labels(size))
    check_data("npz", tmp_path)
    splits = load_splits("npz", tmp_path)
    expected = [40, 5, 10] if with_val else [36, 4, 10]
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == expected


def test_grey_npz_images_get_three_channels(tmp_path):
    arrays = pixels_and_labels()
    np.savez(tmp_path / "grey.npz", image=arrays["image"][..., 0], label=arrays["label"])
    images = load_splits("npz", tmp_path / "grey.npz").train.images
    assert images.shape == (43, 3, 6, 6)
    assert torch.equal(images[:, 0], images[:, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((60, 6, 6), np.float32)}, "uint8 in 0..255, got float32"),
        ({"image": np.zeros((60, 36), np.uint8)}, r"\(60, 36\)"),
        ({"label": np.zeros(60)}, "integers"),
        ({"label": np.zeros(59, np.int64)}, r"\(60,\)"),
        ({"label": np.full(60, -1)}, r"0, 1, 2"),
        ({"label": np.array([None] * 60)}, "array of Python objects"),
        ({"image": np.zeros((60, 0, 6), np.uint8)}, r"\(60, 0, 6\)"),
        ({"image": np.full((60, 4, 6, 3), 99, np.uint8)}, "square.*6x4.*data.image_size"),
    ],
)
def test_wrong_npz_arrays_are_named(tmp_path, changes, message):
    path = tmp_path / "mine.npz"
    np.savez(path, **(pixels_and_labels() | changes))
    with pytest.raises(UserError, match=message):
        load_splits("npz", path)


def test_npz_errors_name_the_file_in_check_data(tmp_path):
    np.savez(tmp_path / "names.npz", x=np.zeros(3), label=np.zeros(3))
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    for root, message in [
        (None, "data.root"),
        (tmp_path / "absent.npz", "absent.npz does not exist"),
        (tmp_path / "names.npz", r"names.npz must hold .* got \['label', 'x'\].*\['image'\]"),
        (tmp_path / "single.npy", "single array"),
        (tmp_path / "text.npz", "text.npz is not a readable"),
        (tmp_path, "train.npz does not exist"),
    ]:
        for function in (check_data, load_splits):
            with pytest.raises(UserError, match=message):
                function("npz", root)


@pytest.mark.parametrize("function", [check_data, load_splits])
@pytest.mark.parametrize("num", [10**12, -60, 59, 61])
def test_a_header_of_another_size_than_its_array_is_refused(function, num, tmp_path):
    arrays = pixels_and_labels()
    with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            header = np.lib.format.header_data_from_array_1_0(array)
            header["shape"] = (num, *array.shape[1:])
            np.lib.format.write_array_header_1_0(content, header)
            archive.writestr(f"{name}.npy", content.getvalue() + array.tobytes())
    with pytest.raises(UserError, match=r"damaged \(image has [\d,]+ bytes, expected -?[\d,]+"):
        function("npz", tmp_path / "mine.npz")


def test_a_truncated_npz_file_is_one_error(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **pixels_and_labels())
    intact = path.read_bytes()
    damaged = bytearray(intact)
    damaged[2000] ^= 255
    for content in (intact[:500], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="write it again"):
            load_splits("npz", path)
