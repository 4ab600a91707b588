from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raymi.data import DATASETS, check_data, load_splits
from raymi.errors import UserError


def test_cifar10_is_complete_and_stratified(cifar10_root):
    splits = load_splits("cifar10", cifar10_root, download=False)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [45000, 5000, 10000]
    for part, count in ((splits.train, 4500), (splits.val, 500), (splits.test, 1000)):
        assert torch.bincount(part.labels).tolist() == [count] * 10
    assert splits.train.class_names[3] == "cat"
    assert splits.test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    published = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    assert splits.mean == pytest.approx(published[0], abs=1e-3)
    assert splits.std == pytest.approx(published[1], abs=1e-3)

    from torchvision.datasets import CIFAR10

    assert splits.duplicates == {}
    picture = torch.tensor(CIFAR10(cifar10_root, train=False).data[17])
    assert torch.equal(splits.test.images[17].permute(1, 2, 0), picture)


def test_train_and_val_are_disjoint_and_cover_the_training_images():
    whole = load_splits("digits", val_fraction=0)
    splits = load_splits("digits", val_fraction=0.2)
    assert len(whole.val) == 0
    assert len(splits.train) + len(splits.val) == len(whole.train)

    def rows(*sets):
        return sorted(image.numpy().tobytes() for s in sets for image in s.images)

    assert rows(splits.train, splits.val) == rows(whole.train)  # digits has no two equal images
    assert len(set(rows(whole.train))) == len(whole.train)
    assert splits.test.digest == whole.test.digest


def test_the_split_depends_on_split_seed_only():
    first = load_splits("digits", split_seed=3)
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    again = load_splits("digits", split_seed=3, image_size=16)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.val.labels, again.val.labels)
    assert load_splits("digits", split_seed=3).val.digest == first.val.digest
    assert load_splits("digits", split_seed=4).val.digest != first.val.digest


def test_image_size_resizes_every_part():
    splits = load_splits("digits", image_size=16)
    assert splits.image_size == 16
    for part in (splits.train, splits.val, splits.test):
        assert part.images.shape[1:] == (3, 16, 16)


def test_limit_keeps_the_first_of_every_class_before_the_split():
    whole = load_splits("digits", val_fraction=0)
    few = load_splits("digits", limit=100)
    assert [len(part) for part in (few.train, few.val, few.test)] == [90, 10, 100]
    unsplit = load_splits("digits", limit=100, val_fraction=0)
    for label in range(10):
        chosen = unsplit.train.images[unsplit.train.labels == label]
        assert 9 <= len(chosen) <= 11
        of_class = whole.train.images[whole.train.labels == label]
        assert torch.equal(chosen, of_class[: len(chosen)])


def test_mean_and_std_are_computed_from_the_training_images():
    splits = load_splits("digits", val_fraction=0.5)
    pixels = splits.train.images.double() / 255
    assert splits.mean[0] == pytest.approx(pixels[:, 0].mean().item())
    assert splits.std[0] == pytest.approx(pixels[:, 0].std(correction=0).item())


@pytest.mark.parametrize("function", [check_data, load_splits])
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar-10", {}, "unknown data set 'cifar-10': did you mean cifar10"),
        ("xyzzy", {}, "unknown data set 'xyzzy': there are digits, cifar10,"),
        ("digits", {"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
        ("digits", {"val_fraction": -0.1}, "got -0.1"),
        ("digits", {"val_fraction": float("nan")}, "got nan"),
        ("digits", {"image_size": 0}, "image_size must be at least 1"),
        ("digits", {"limit": 0}, "limit must be at least 1"),
    ],
)
def test_invalid_arguments_are_refused(function, name, options, message):
    with pytest.raises(UserError, match=message):
        function(name, **options)


def test_every_set_has_one_line_of_description():
    assert set(DATASETS) >= {"digits", "cifar10", "cifar100", "svhn", "mnist", "fashion-mnist"}
    assert set(DATASETS) >= {"tiny-imagenet", "folder", "npz"}
    assert all(text and "\n" not in text for text in DATASETS.values())


def test_importing_the_package_imports_no_heavy_library():
    code = (
        "import sys, raymi.data\n"
        "heavy = {'torchvision', 'sklearn', 'scipy', 'PIL', 'filelock', 'ray', 'mlflow'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
