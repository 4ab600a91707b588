from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raymi.counter_rng import integers, uniform
from raymi.data.augment import augment, random_crop, random_flip, to_unit
from raymi.data.settings import check_crop
from raymi.errors import UserError

KEY = 1234567


def random_batch(batch_size: int = 40, height: int = 8, width: int = 8) -> Tensor:
    """Returns images without zeros, so that padding differs from pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, 3, height, width)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def as_is(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("convert", [as_is, to_unit])
@pytest.mark.parametrize(("height", "width", "padding"), [(8, 8, 4), (5, 9, 2), (6, 6, 0)])
def test_crop_equals_the_naive_loop(convert, height, width, padding):
    x = convert(random_batch(40, height, width))
    index = torch.arange(40) * 7
    offsets = integers(KEY, index, 2 * padding + 1, (2,))
    expected = torch.zeros_like(x)
    for b, (top, left) in enumerate((offsets - padding).tolist()):
        for i in range(height):
            for j in range(width):
                if 0 <= i + top < height and 0 <= j + left < width:
                    expected[b, :, i, j] = x[b, :, i + top, j + left]
    cropped = random_crop(x, KEY, index, padding)
    assert cropped.dtype == x.dtype
    assert torch.equal(cropped, expected)


@pytest.mark.parametrize(
    "parts", [{"crop_padding": 4, "flip": False}, {"crop_padding": 0, "flip": True}]
)
def test_crop_and_flip_depend_on_seed_and_epoch(parts):
    x, index = random_batch(), torch.arange(40)
    results = [
        augment(x, seed=seed, epoch=epoch, index=index, **parts)
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert len({result.numpy().tobytes() for result in results}) == 4


def test_crop_reaches_every_offset_equally_often():
    x = torch.zeros(40_000, 3, 3, 3, dtype=torch.uint8)
    x[:, :, 1, 1] = 1
    cropped = random_crop(x, KEY, torch.arange(40_000), 1)[:, 0]  # the dot shows the offset
    share = cropped.double().mean(0)
    assert (share - 1 / 9).abs().max() < 0.01  # 6 standard errors


@pytest.mark.parametrize("convert", [as_is, to_unit])
def test_flip_equals_the_naive_loop(convert):
    x = convert(random_batch())
    index = torch.arange(40)
    expected = x.clone()
    for b, number in enumerate(uniform(KEY, index).tolist()):
        if number < 0.5:
            for j in range(8):
                expected[b, :, :, j] = x[b, :, :, 7 - j]
    assert torch.equal(random_flip(x, KEY, index), expected)
    assert 5 < sum(not torch.equal(a, b) for a, b in zip(expected, x, strict=True)) < 35


def test_augmentation_is_independent_of_the_batch():
    x, index = random_batch(), torch.arange(40) + 1000
    options = {"seed": 0, "epoch": 3, "crop_padding": 4, "flip": True}
    together = augment(x, index=index, **options)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    parts = [augment(x[rows], index=index[rows], **options) for rows in order.split(7)]
    assert torch.equal(torch.cat(parts), together[order])
    assert augment(x[:0], index=index[:0], **options).shape == (0, 3, 8, 8)


def test_bytes_and_unit_floats_are_augmented_alike():
    x, index = random_batch(), torch.arange(40)
    options = {"seed": 0, "epoch": 3, "crop_padding": 4, "flip": True, "index": index}
    assert torch.equal(to_unit(augment(x, **options)), augment(to_unit(x), **options))


def test_seed_epoch_and_index_each_change_the_result():
    x, index = random_batch(), torch.arange(40)
    options = {"crop_padding": 4, "flip": True}
    results = [
        augment(x, seed=seed, epoch=epoch, index=index + shift, **options)
        for seed, epoch, shift in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 40)]
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[i + 1 :])
    again = augment(x, seed=0, epoch=0, index=index, **options)
    assert torch.equal(again, results[0])


def test_half_of_the_images_are_flipped_for_any_crop():
    image = torch.arange(1, 26, dtype=torch.uint8).view(5, 5)
    x, index = image.expand(4000, 3, 5, 5), torch.arange(4000)
    cropped = augment(x, seed=0, epoch=0, index=index, crop_padding=1, flip=False)
    both = augment(x, seed=0, epoch=0, index=index, crop_padding=1, flip=True)
    flipped = (both != cropped).flatten(1).any(1)
    offset = cropped[:, 0, 2, 2]  # the pixel in the middle identifies the crop
    assert len(offset.unique()) == 9
    for value in offset.unique():
        assert abs(flipped[offset == value].double().mean() - 0.5) < 0.1  # 4 standard errors


def test_padding_as_wide_as_the_image_is_refused():
    check_crop(7, 8)
    for padding in (8, 10**9):
        with pytest.raises(UserError, match=rf"got {padding} for images of 8x8 .*: 1 is usual"):
            check_crop(padding, 8)


def test_without_crop_and_flip_the_input_is_returned():
    x = random_batch()
    index = torch.arange(40)
    assert augment(x, seed=0, epoch=0, index=index, crop_padding=0, flip=False) is x


def test_input_and_global_random_state_are_unchanged():
    x, state = random_batch(), torch.get_rng_state()
    before = x.clone()
    augment(x, seed=0, epoch=0, index=torch.arange(40), crop_padding=2, flip=True)
    assert torch.equal(x, before)
    assert torch.equal(state, torch.get_rng_state())


def test_to_unit_maps_0_and_255_exactly():
    unit = to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert unit.dtype == torch.float32
    assert unit.tolist() == [0.0, pytest.approx(0.2), 1.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_and_cpu_augment_alike():
    x, index = random_batch(), torch.arange(40)
    options = {"seed": 0, "epoch": 3, "crop_padding": 4, "flip": True}
    assert torch.equal(
        augment(x.cuda(), index=index, **options).cpu(), augment(x, index=index, **options)
    )
