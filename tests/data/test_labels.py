"""Labels of .npz files: classes 0, 1, 2, ..., each with training images, or one clear error."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymi.data import check_data, load_splits
from raymi.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 3), np.uint8)
LABEL = np.arange(60) % 3


def write(path: Path, label: Any, image: Any = IMAGE) -> Path:
    np.savez(path, image=image, label=label)
    return path


def renumbered(message: str, label: np.ndarray) -> np.ndarray:
    """Runs the line of numpy that a message gives."""
    line = message[message.index("label = ") :]
    names = {"numpy": np, "label": label}
    exec(line, names)
    return np.asarray(names["label"])


@pytest.mark.parametrize("function", [check_data, load_splits])
@pytest.mark.parametrize(
    ("label", "found", "missing"),
    [
        (LABEL + 1, "1, 2, 3 (3 labels)", "0 of 0..3"),
        (np.array([3, 5, 9])[LABEL], "3, 5, 9 (3 labels)", "0, 1, 2, 4, 6, 7, ... (7 labels)"),
        (LABEL % 2 * 255, "0, 255 (2 labels)", "1, 2, 3, 4, 5, 6, ... (254 labels)"),
        (np.where(LABEL, 10**9, 0), "0, 1000000000", "(999999999 labels)"),
        (np.where(LABEL, 2**62, 0).astype(np.uint64), "0, 4611686018427387904", "(46116860184"),
        (np.arange(60) * 2, "0, 2, 4, 6, 8, ..., 118 (60 labels)", "1, 3, 5, 7, 9, 11, ..."),
    ],
    ids=["from 1", "gaps", "0 and 255", "an id", "a large id", "many gaps"],
)
def test_labels_with_gaps_are_refused_with_a_renumbering_expression(
    function, label, found, missing, tmp_path
):
    path = write(tmp_path / "x.npz", label)
    with pytest.raises(UserError) as caught:
        function("npz", path)
    message = str(caught.value)
    assert f"0, 1, 2, ... without gaps, got {found}" in message
    assert f"{missing}" in message
    right = renumbered(message, label)
    assert np.unique(right).tolist() == list(range(len(np.unique(label))))
    check_data("npz", write(path, right))


def test_files_of_parts_get_one_renumbering(tmp_path):
    labels = {"train": np.array([3, 5, 9])[LABEL], "test": np.full(60, 9)}
    for part, label in labels.items():
        write(tmp_path / f"{part}.npz", label)
    with pytest.raises(UserError, match=r"train.npz: .* got 3, 5, 9 .*in each file") as caught:
        load_splits("npz", tmp_path)
    line = str(caught.value).partition("with label = ")[2].partition(" in each file")[0]
    for part, label in labels.items():
        names = {"numpy": np, "label": label, "train_label": labels["train"]}
        write(tmp_path / f"{part}.npz", eval(line, names))
    assert load_splits("npz", tmp_path).test.labels.unique().tolist() == [2]


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_class_without_training_images_is_refused(part, tmp_path):
    for name in ("train", "test", "val"):
        write(tmp_path / f"{name}.npz", LABEL)
    write(tmp_path / f"{part}.npz", np.where(LABEL == 1, 3, LABEL))
    for function in (check_data, load_splits):
        with pytest.raises(UserError, match=rf"{part}.npz has labels that .*train.npz lacks \(3\)"):
            function("npz", tmp_path)
    write(tmp_path / "train.npz", np.where(LABEL == 1, 3, LABEL))
    write(tmp_path / f"{part}.npz", LABEL)
    with pytest.raises(UserError, match=r"lacks \(1\): every class needs training images"):
        load_splits("npz", tmp_path)


def test_a_test_set_may_lack_a_class(tmp_path):
    write(tmp_path / "train.npz", LABEL)
    write(tmp_path / "test.npz", LABEL % 2)
    splits = load_splits("npz", tmp_path)
    assert (splits.num_classes, splits.test.labels.unique().tolist()) == (3, [0, 1])


def test_labels_are_checked_on_the_whole_set_before_the_limit(tmp_path):
    label = np.repeat([0, 1, 4], [28, 28, 4])
    with pytest.raises(UserError, match=r"got 0, 1, 4 .*2, 3 of 0\.\.4"):
        load_splits("npz", write(tmp_path / "x.npz", label), limit=4)
    np.put(label, range(56, 60), 2)
    splits = load_splits("npz", write(tmp_path / "x.npz", label), limit=4)
    assert splits.num_classes == 3
    assert len(splits.test) == 4


@pytest.mark.parametrize("function", [check_data, load_splits])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros(60, int), "all labels are 0: expected at least two classes"),
        (np.full(60, 7), "all labels are 7: expected at least two classes"),
        (np.where(LABEL, LABEL, -1), r"got -1, 1, 2: remove images without a class"),
        (np.where(LABEL, 2**64 - 1, 0).astype(np.uint64), "got 0, 18446744073709551615"),
        (np.eye(3)[LABEL], r"got float64 \(60, 3\): .*label = label.argmax\(1\)"),
        (np.eye(3, dtype=int)[LABEL], r"got int64 \(60, 3\): .*label = label.argmax\(1\)"),
        (LABEL[None], r"got int64 \(1, 60\): take label = label.reshape\(-1\)"),
        (LABEL[:59], r"got int64 \(59,\): write one label for each image"),
        (LABEL.astype("m8[s]"), r"got timedelta64\[s\]"),
        (LABEL[:, None], r"got int64 \(60, 1\): take label = label\[:, 0\]"),
        (LABEL.astype(np.float32), r"got float32 .*label = label.astype\(int\)"),
        (LABEL == 1, r"got bool .*label = label.astype\(int\)"),
        (LABEL + 0.5, r"got float64 .*: they must be the numbers of classes"),
        (np.where(LABEL, LABEL, np.nan), "got float64 .*NaN"),
        (np.array(["cat", "dog", "emu"])[LABEL], r"got <U3 .*names, label = numpy.unique"),
        (np.array([b"cat", b"dog", b"emu"])[LABEL], r"got \|S3 .*names, label = numpy.unique"),
        (LABEL.astype(object), r"`label` is an array of Python objects.*np.array"),
        (LABEL + 0j, "integers .* got complex128"),
        (np.array(3), r"integers of shape \(60,\).*got int64 \(\)"),
    ],
)
def test_invalid_labels_are_refused_with_a_conversion(function, label, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        function("npz", write(tmp_path / "x.npz", label))
    assert "x.npz: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [check_data, load_splits])
@pytest.mark.parametrize(
    ("image", "message", "convert"),
    [
        (IMAGE / 255, "float64 from 0 to 1", '(image * 255).round().astype("uint8")'),
        (IMAGE.astype("f4"), "float32 from 0 to 255", 'image.round().astype("uint8")'),
        (IMAGE / 127.5 - 1, "from -1 to 1", '((image + 1) * 127.5).round().astype("uint8")'),
        (IMAGE.astype(int), "int64 from 0 to 255", 'image.astype("uint8")'),
        (IMAGE * np.uint16(257), "uint16 from 0 to 65535", "(image / white * 255).round()"),
        (IMAGE > 99, "bool", 'image.astype("uint8") * 255'),
        ((IMAGE > 99).astype("i1"), "int8 from 0 to 1", 'image.astype("uint8") * 255'),
        (np.where(IMAGE > 99, np.nan, 1.0), "float64 with NaN or infinite", "repair"),
        (np.where(IMAGE > 99, np.inf, 1.0), "float64 with NaN or infinite", "repair"),
        (IMAGE * 1000.0 - 5, "float64 from -5 to", "black is 0 and white is 255"),
        (IMAGE.astype(object), "array of Python objects", "image = np.stack(list(image))"),
        (IMAGE.astype("S3"), "got |S3", "convert them"),
    ],
)
def test_images_of_other_types_are_refused_with_a_conversion(
    function, image, message, convert, tmp_path
):
    with pytest.raises(UserError) as caught:
        function("npz", write(tmp_path / "x.npz", LABEL, image))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'x.npz'}: ")
    assert message in text
    assert convert in text
    with pytest.raises(UserError) as caught:
        function("digits", generated=tmp_path / "x.npz")
    assert message in str(caught.value)
    if "uint8" in convert and text.endswith(convert):
        right = eval(convert, {"image": image})
        write(tmp_path / "x.npz", LABEL, right)
        found = load_splits("npz", tmp_path / "x.npz").train.images
        assert found.max() == 255


@pytest.mark.parametrize("most", [1, 16])
def test_uint8_images_of_another_scale_are_refused(most, tmp_path):
    """Bytes of 0..1 were floats once; scikit-learn's digits have 0..16."""
    path = write(tmp_path / "x.npz", LABEL, IMAGE % (most + 1))
    with pytest.raises(UserError, match=r"the 60 images of .*x.npz are nearly black: .* white"):
        load_splits("npz", path)
    with pytest.raises(UserError, match="nearly black"):
        load_splits("digits", image_size=8, generated=path)


def test_a_class_left_only_in_the_test_set_is_refused(tmp_path):
    label = np.arange(60) // 2  # pairs: nothing is lost
    assert load_splits("npz", write(tmp_path / "x.npz", label), val_fraction=0).num_classes == 30
    with pytest.raises(UserError, match=r"no training images are left of 12 classes .*test set"):
        load_splits("npz", write(tmp_path / "x.npz", np.arange(60)), val_fraction=0)


def test_a_class_left_only_in_validation_is_refused(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / f"{part}.npz", np.arange(60))
    with pytest.raises(UserError, match=r"no training images are left of 6 .*validation set"):
        load_splits("npz", tmp_path)
    assert len(load_splits("npz", tmp_path, limit=20).val) == 2, "a quick try may lose classes"


@pytest.mark.parametrize("function", [check_data, load_splits])
def test_memory_is_independent_of_label_values(function, tmp_path):
    path = write(tmp_path / "x.npz", np.where(LABEL, 10**9, 0))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="without gaps"):
            function("npz", path)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()
