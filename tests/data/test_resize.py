from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from raymi.data.resize import fit_square, fit_square_image, rgb_images
from raymi.errors import UserError


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_every_layout_of_the_same_pixels_gives_the_same_images():
    colour = random_pixels(4, 3, 5, 6)
    assert torch.equal(rgb_images(colour), torch.from_numpy(colour))
    assert torch.equal(rgb_images(colour.transpose(0, 2, 3, 1)), torch.from_numpy(colour))
    grey = colour[:, 0]
    repeated = torch.from_numpy(grey)[:, None].repeat(1, 3, 1, 1)
    for array in (grey, grey[..., None], grey[:, None]):
        assert torch.equal(rgb_images(array), repeated)
        assert rgb_images(array).is_contiguous()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), "uint8 in 0..255, got float32"),
        (np.zeros((2, 4), np.uint8), r"got \(2, 4\)"),
        (np.zeros((2, 0, 4), np.uint8), r"got \(2, 0, 4\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"got \(2, 4, 4, 4\)"),
    ],
)
def test_invalid_arrays_are_refused(array, message):
    with pytest.raises(UserError, match=message):
        rgb_images(array)


def test_images_of_the_right_size_are_unchanged():
    images = torch.from_numpy(random_pixels(2, 3, 8, 8))
    assert fit_square(images, 8) is images


def test_a_flat_image_stays_flat_at_any_size():
    images = torch.full((2, 3, 8, 12), 201, dtype=torch.uint8)
    for size in (3, 8, 11, 32):
        assert fit_square(images, size).shape == (2, 3, size, size)
        assert fit_square(images, size).unique().tolist() == [201]


def test_halving_averages_without_aliasing():
    stripes = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    stripes[..., ::2] = 255
    inner = fit_square(stripes, 8)[..., 2:-2]
    assert (inner.int() - 128).abs().max() <= 1  # every second pixel alone would be 255 or 0


def test_the_centre_of_the_longer_side_is_kept():
    images = torch.zeros(1, 3, 10, 30, dtype=torch.uint8)
    images[..., 10:20] = 77
    assert fit_square(images, 10).unique().tolist() == [77]
    assert fit_square(images.transpose(2, 3), 10).unique().tolist() == [77]


def test_resizing_is_independent_of_the_batch():
    images = torch.from_numpy(random_pixels(1500, 3, 7, 7))  # more than one chunk
    together = fit_square(images, 9)
    for i in (0, 1023, 1024, 1499):
        assert torch.equal(together[i], fit_square(images[i : i + 1], 9)[0])


@pytest.mark.parametrize("size", [5, 16, 33])
def test_single_images_are_resized_as_batches_within_one_level(size):
    pixels = random_pixels(1, 20, 26, 3)
    single = np.asarray(fit_square_image(Image.fromarray(pixels[0]), size)).transpose(2, 0, 1)
    batch = fit_square(rgb_images(pixels), size)[0]
    assert (torch.from_numpy(single.copy()).int() - batch.int()).abs().max() <= 1
