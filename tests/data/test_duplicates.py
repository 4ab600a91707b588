"""Images shared by two splits are counted and reported; training continues."""

from __future__ import annotations

import shutil

import numpy as np
import torch

from raymi.data import ImageSet, Splits, load_splits
from raymi.data.duplicates import count_duplicates, describe_duplicates


def random_images(num_images: int, seed: int, levels: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, 3, 2, 2)
    return torch.randint(0, levels, shape, generator=generator).to(torch.uint8)


def test_counts_equal_the_naive_loop():
    sets = {
        name: random_images(num_images, seed, levels=2)[:, :, :1]
        for seed, (name, num_images) in enumerate(
            {"train": 90, "val": 30, "test": 40, "generated": 50}.items()
        )
    }
    expected = {}
    for pair in ("val/train", "test/train", "test/val", "val/generated", "test/generated"):
        one, other = (sets[name] for name in pair.split("/"))
        count = sum(any(torch.equal(a, b) for b in other) for a in one)
        expected[pair] = count
        assert 0 < count < len(one), "some are shared, and not all"
    assert count_duplicates(sets) == expected


def test_images_that_differ_in_one_pixel_are_not_duplicates():
    images = random_images(10, 0)
    other = images.clone()
    other[:, 2, 1, 1] ^= 1
    assert count_duplicates({"train": images, "val": other, "test": images[:0]}) == {}
    assert count_duplicates({"train": images, "val": other, "test": images.flip(0)[:4]}) == {
        "test/train": 4
    }


def test_the_warning_has_numbers_and_consequences():
    sizes = {"train": 100, "val": 10, "test": 20}
    assert describe_duplicates({}, sizes) == ""
    both = describe_duplicates({"val/train": 3, "test/train": 4, "test/val": 1}, sizes)
    assert "3 of 10 val images are also in train, 4 of 20 test images are also in train" in both
    assert "1 of 20 test images are also in val" in both
    assert "best epoch is chosen on training images and accuracies" in both
    assert "best epoch" not in describe_duplicates({"test/train": 4}, sizes)


def test_copies_of_files_between_parts_are_counted(tmp_path, write_images):
    write_images(tmp_path / "train", "cat dog", 6)
    write_images(tmp_path / "test", "cat dog", 3, seed=1)
    assert load_splits("folder", tmp_path).duplicates == {}
    dogs, cats = tmp_path / "train" / "dog", tmp_path / "test" / "cat"
    for i in range(2):  # under another name, and another class
        shutil.copy(dogs / f"{i}.png", cats / f"x{i}.png")
    assert load_splits("folder", tmp_path, val_fraction=0).duplicates == {"test/train": 2}


def test_copies_within_the_training_images_reach_validation(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), np.uint8)
    label = np.arange(40) % 2
    np.savez(tmp_path / "train.npz", image=np.repeat(image, 2, 0), label=np.repeat(label, 2))
    np.savez(tmp_path / "test.npz", image=image[:, ::-1], label=label)
    splits = load_splits("npz", tmp_path)
    assert 4 <= splits.duplicates["val/train"] <= len(splits.val) == 8


def test_generated_copies_of_test_images_are_counted(tmp_path):
    digits = load_splits("digits")
    made = digits.test.images[:7].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "made.npz", image=made, label=np.zeros(7, int))
    splits = load_splits("digits", generated=tmp_path / "made.npz")
    assert splits.duplicates == {"test/generated": 7}


def test_digits_have_no_duplicates():
    assert load_splits("digits").duplicates == {}


def test_a_set_used_twice_is_all_duplicates():
    images = random_images(9, 0)
    whole = ImageSet(images, torch.zeros(9, dtype=torch.int64), ("a", "b"))
    splits = Splits(whole, whole, whole, "x", 2, 2, (0.5,) * 3, (1.0,) * 3)
    assert splits.duplicates == {"val/train": 9, "test/train": 9, "test/val": 9}
