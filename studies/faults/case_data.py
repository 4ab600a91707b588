"""Malformed data sets: labels, arrays and image files."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image

from studies.faults.case import NEEDED, NETWORK, SHORT, Case


def _npz(image: np.ndarray, label: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, image=image, label=label)
    return file.getvalue()


def _on_data(kind: str, detail: str, content: bytes, rng: random.Random, invalid: bool) -> Case:
    command = rng.choice(("standalone", "standalone", "train", "tune", "compare", "evaluate"))
    data = ("data.name=npz", "data.root=d.npz")
    words = (*NEEDED[command], *data, *SHORT.get(command, ()))
    return Case(kind, command, words, detail, {"d.npz": content, "net.py": NETWORK}, invalid)


def bad_labels(rng: random.Random) -> Case:
    """Labels that are not 0, 1, ..., K-1."""
    num, classes = 80, rng.randint(2, 6)
    y = np.arange(num) % classes
    image = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (num, 8, 8, 3), np.uint8)
    gap = rng.randint(1, classes)
    label = rng.choice(
        (
            ("from 1", y + 1),
            ("a gap", y + (y >= gap) if gap < classes else y + 1),
            ("0 and 255", (y % 2) * 255),
            ("an id", np.where(y == 0, 0, 10 ** rng.randint(4, 18))),
            ("-1", y - 1),
            ("one-hot", np.eye(classes, dtype=np.int64)[y]),
            ("floats", y * 1.0),
            ("halves", y + 0.5),
            ("NaN", np.where(y == 0, np.nan, y)),
            ("text", y.astype("U")),
            ("bytes", y.astype("S")),
            ("column", y[:, None]),
            ("too few", y[:-1]),
            ("none", y[:0]),
            ("one class", y * 0),
            ("objects", y.astype(object)),
            ("complex", y.astype(complex)),
            ("dates", y.astype("M8[s]")),
            ("uint64", y.astype(np.uint64) + np.uint64(2**63)),
        )
    )
    return _on_data("labels", label[0], _npz(image=image, label=label[1]), rng, True)


def bad_pixels(rng: random.Random) -> Case:
    """Arrays that are no images."""
    num, side = 80, rng.choice((6, 8, 12))
    numbers = np.random.default_rng(rng.randrange(2**32))
    x = numbers.integers(0, 256, (num, side, side, 3), np.uint8)
    nan = (x / 255).astype(np.float32)
    nan[3, 0, 0, 0] = np.nan
    image = rng.choice(
        (
            ("floats in [0, 1]", x / 255),
            ("floats in [0, 255]", x * 1.0),
            ("NaN", nan),
            ("normalised", (x / 255 - 0.5) / 0.2),
            ("int64", x.astype(np.int64)),
            ("uint16", x.astype(np.uint16) * 257),
            ("bool", x > 127),
            ("flat", x.reshape(num, -1)),
            ("two channels", x[..., :2]),
            ("four channels", np.repeat(x[..., :1], 4, axis=3)),
            ("five axes", x[None]),
            ("one image", x[0]),
            ("no pixels", x[:, :0]),
            ("none", x[:0]),
            ("objects", np.array([*x, None], dtype=object)[:-1]),
            ("text", x.astype("U3")),
            ("not square", x[:, :-2]),
            ("complex", x.astype(complex)),
        )
    )
    content = _npz(image=image[1], label=np.arange(len(image[1])) % 3)
    if rng.random() < 0.2:
        cut = rng.randrange(len(content))
        return _on_data("pixels", f"cut at byte {cut}", content[:cut], rng, True)
    # data.image_size resizes; one colour image reads as grey images of 3 columns
    invalid = image[0] not in ("not square", "one image")
    return _on_data("pixels", image[0], content, rng, invalid)


def bad_image_file(rng: random.Random) -> Case:
    """A folder of images of which one file is broken or unusual."""
    numbers = np.random.default_rng(rng.randrange(2**32))

    def encoded(array: np.ndarray, suffix: str = "png", mode: str | None = None) -> bytes:
        file = io.BytesIO()
        Image.fromarray(array, mode).save(file, {"tif": "TIFF", "jpg": "JPEG"}.get(suffix, suffix))
        return file.getvalue()

    def pixels(*shape: int) -> np.ndarray:
        return numbers.integers(0, 256, shape, np.uint8)

    files = {
        f"d/{part}/{name}/{index}.png": encoded(pixels(8, 8, 3))
        for part in ("train", "test")
        for name in ("ant", "bee")
        for index in range(12)
    }
    whole = encoded(pixels(8, 8, 3))
    floats = numbers.random((8, 8), np.float32)
    kind, path, content, invalid = rng.choice(
        (
            ("empty file", "d/train/ant/x.png", b"", True),
            ("text", "d/train/ant/x.png", b"hello", True),
            ("cut", "d/test/bee/x.png", whole[: rng.randrange(8, len(whole) - 20)], True),
            ("other size", "d/test/bee/x.png", encoded(pixels(9, 8, 3)), False),
            ("floats over 1", "d/train/ant/x.tif", encoded(floats * 300, "tif"), True),
            ("NaN", "d/train/ant/x.tif", encoded(floats * np.float32(np.nan), "tif"), True),
            ("16 bits", "d/train/ant/x.png", encoded(pixels(8, 8).astype(np.uint16) * 257), False),
            ("class of test alone", "d/test/cat/x.png", whole, True),
            ("32 bits", "d/train/ant/x.tif", encoded(pixels(8, 8).astype(np.int32), "tif"), False),
            ("CMYK", "d/train/ant/x.jpg", encoded(pixels(8, 8, 4), "jpg", "CMYK"), False),
            ("alpha", "d/train/ant/x.png", encoded(pixels(8, 8, 4)), False),
            ("palette", "d/train/ant/x.png", encoded(pixels(8, 8), "png", "P"), False),
            ("odd name", "d/train/ant/[red]\x1b[31m.png", whole, False),
        )
    )
    command = rng.choice(("standalone", "evaluate"))
    data = ("data.name=folder", "data.root=d")
    words = (*NEEDED[command], *data, *SHORT[command])
    return Case(
        "image file", command, words, kind, {**files, path: content, "net.py": NETWORK}, invalid
    )
