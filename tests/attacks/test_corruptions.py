"""Common corruptions: the images that files hold, and files that are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from raymi.attacks import corruptions
from raymi.attacks.catalogue import Threat
from raymi.attacks.corruptions import corruption_ensembles
from raymi.attacks.execution import Batch, run_attack
from raymi.data import ImageSet, load_splits
from raymi.data.augment import to_unit
from raymi.errors import UserError
from raymi.evaluation.protocol import attack_inputs

THREAT = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def test_images():
    test = load_splits("digits").test
    return ImageSet(test.images[:60], test.labels[:60], test.class_names)


@pytest.fixture
def folder(corrupted_files, test_images, tmp_path):
    return corrupted_files(test_images, tmp_path / "digits-c")


@pytest.fixture(autouse=True)
def unread():
    """Forgets files of earlier tests."""
    corruptions.sha256.cache_clear()


def test_each_severity_has_its_rows_of_the_file(folder, test_images, model, digits):
    some = test_images.subset([7, 3, 20])
    ensembles = corruption_ensembles(folder, some)
    assert len(ensembles) == 10
    batch = Batch(to_unit(some.images), some.labels, some.places, 0)
    for ensemble in ensembles:
        _, name, severity = ensemble.name.split("-")
        rows = np.load(folder / f"{name}.npy")
        (attack,) = ensemble.attacks
        found = run_attack(attack, model, batch, THREAT)
        for k, place in enumerate((7, 3, 20)):
            pixels = torch.tensor(rows[(int(severity) - 1) * len(test_images) + place])
            assert torch.equal(found.x_adv[k], pixels.permute(2, 0, 1) / 255)
        assert torch.equal(found.broken, found.prediction != some.labels)
        assert ensemble.everyone, "misclassified images are counted, too"


def test_corruptions_for_validation_are_not_in_the_mean(folder, test_images):
    (folder / "spatter.npy").write_bytes((folder / "contrast.npy").read_bytes())
    means = {e.name: e.means for e in corruption_ensembles(folder, test_images)}
    assert means["corruption-spatter-1"] == ("corruption-spatter",)
    assert means["corruption-contrast-1"] == ("corruption-contrast", "corruptions")


def test_other_files_are_another_protocol(folder, test_images):
    first = attack_inputs(corruption_ensembles(folder, test_images))
    assert first.keys() == {"labels.npy", "contrast.npy", "gaussian_noise.npy"}
    rows = np.load(folder / "contrast.npy")
    np.save(folder / "contrast.npy", rows ^ 1)
    corruptions.sha256.cache_clear()
    assert attack_inputs(corruption_ensembles(folder, test_images)) != first


def test_a_file_that_changes_during_the_evaluation_is_refused(folder, test_images, model):
    (attack,) = corruption_ensembles(folder, test_images)[0].attacks
    np.save(folder / "contrast.npy", np.load(folder / "contrast.npy") ^ 1)
    corruptions.sha256.cache_clear()
    corruptions._rows.cache_clear()
    batch = Batch(to_unit(test_images.images[:2]), test_images.labels[:2], torch.arange(2), 0)
    with pytest.raises(UserError, match=r"contrast\.npy is not the file that was checked"):
        run_attack(attack, model, batch, THREAT)


def shorter(path):
    path.write_bytes(path.read_bytes()[:-100])


def resaved(change):
    return lambda path: np.save(path, change(np.load(path)))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("labels.npy", lambda path: path.unlink(), "no file .*labels.npy"),
        ("labels.npy", resaved(lambda y: (y + 1) % 10), "60 of 60 test images have another label"),
        ("labels.npy", resaved(lambda y: y[:50]), "at least 60 test images, got 50 labels"),
        ("labels.npy", resaved(lambda y: y / 2), r"expected integers \(5 \* N,\), got float64"),
        ("labels.npy", resaved(lambda y: y.reshape(-1, 1)), r"integers .* got int64 \(300, 1\)"),
        ("labels.npy", resaved(lambda y: y[0]), r"integers .* got int64 \(\)"),
        ("contrast.npy", shorter, "contrast.npy is not a whole file of numpy"),
        ("contrast.npy", lambda path: path.write_bytes(b""), "is not a whole file of numpy"),
        ("contrast.npy", lambda path: path.write_text("<html>"), "is not a whole file of numpy"),
        ("contrast.npy", resaved(lambda x: x[:60]), r"expected uint8 \(300, 8, 8, 3\), got .*60"),
        ("contrast.npy", resaved(lambda x: x / 255.0), r"expected uint8 .*got float64"),
        ("contrast.npy", resaved(lambda x: x[:, :4]), r"got uint8 \(300, 4, 8, 3\)"),
        ("contrast.npy", lambda path: path.rename(path.with_stem("a-b")), "letters, digits and _"),
    ],
)
def test_wrong_files_are_refused(name, damage, message, folder, test_images):
    damage(folder / name)
    with pytest.raises(UserError, match=message):
        corruption_ensembles(folder, test_images)


def test_all_wrong_files_are_in_one_message(folder, test_images):
    (folder / "labels.npy").unlink()
    shorter(folder / "contrast.npy")
    np.save(folder / "gaussian_noise.npy", np.zeros(3))
    with pytest.raises(UserError) as caught:
        corruption_ensembles(folder, test_images)
    lines = str(caught.value).splitlines()
    assert [re.findall(r"(\w+)\.npy", line)[0] for line in lines] == [
        "labels", "contrast", "gaussian_noise",
    ]  # fmt: skip


def test_a_folder_without_files_is_refused(tmp_path, test_images):
    np.save(tmp_path / "labels.npy", test_images.labels.repeat(5).numpy())
    with pytest.raises(UserError, match=r"has no file such as fog\.npy"):
        corruption_ensembles(tmp_path, test_images)
