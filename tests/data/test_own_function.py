"""A user's function of torch Datasets is a data set like any other, or is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from raymi.config import Config
from raymi.data import check_data, load_splits
from raymi.errors import UserError
from raymi.tracking.registry import registered_name


def images(num, seed=0):
    return torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def labelled(num, seed=0):
    return TensorDataset(images(num, seed), torch.arange(num) % 3)


def one():
    return labelled(60)


def two():
    return labelled(60), labelled(12, seed=1)


def three():
    return labelled(60), labelled(9, seed=2), labelled(12, seed=1)


def split_at_random():
    return random_split(labelled(60), [40, 20])


def rooted(root: Path):
    return TensorDataset(torch.load(root / "x.pt"), torch.arange(30) % 3), labelled(12)


class Reading(Dataset):
    """Counts its reads of each sample."""

    reads: list[int] = []  # noqa: RUF012

    def __len__(self):
        return 30

    def __getitem__(self, index):
        self.reads.append(index)
        return images(1, seed=index)[0], index % 3


def reading():
    return Reading(), labelled(12, seed=1)


def four():
    return (labelled(6),) * 4


def nothing():
    return None


def loader():
    return DataLoader(labelled(6)), labelled(6)


def empty():
    return labelled(60), labelled(0)


def unlabelled():
    return TensorDataset(images(6)), labelled(6)


def normalised():
    return TensorDataset(images(6) * 4 - 2, torch.arange(6) % 3), labelled(6)


def float_labels():
    return TensorDataset(images(6), torch.rand(6)), labelled(6)


def flat():
    return TensorDataset(images(6).flatten(1), torch.arange(6) % 3), labelled(6)


def fails():
    raise FileNotFoundError("photos.tar is not there")


def needs_arguments(folder):
    return labelled(6)


def gap():
    return TensorDataset(images(6), torch.tensor([0, 0, 2, 2, 0, 2]))


def own(name):
    return f"{__name__}:{name}"


def test_two_parts_are_training_and_test_images():
    splits = load_splits(own("two"), val_fraction=0.1)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [54, 6, 12]
    assert (splits.name, splits.num_classes, splits.image_size) == ("two", 3, 8)
    expected = (images(12, seed=1) * 255).round().to(torch.uint8)
    assert torch.equal(splits.test.images, expected)


def test_one_part_gives_a_fixed_fifth_as_test_images():
    splits = load_splits(own("one"), val_fraction=0.25)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [36, 12, 12]
    assert splits.test.digest == load_splits(own("one"), split_seed=5).test.digest


def test_three_parts_bring_their_own_validation_images():
    splits = load_splits(own("three"), image_size=16)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [60, 9, 12]
    assert splits.image_size == 16


def test_random_splits_are_the_same_in_every_process():
    state = torch.get_rng_state()
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        digests.add(load_splits(own("split_at_random")).train.digest)
    assert len(digests) == 1
    torch.set_rng_state(state)


def test_a_function_with_the_parameter_gets_the_root(tmp_path):
    torch.save(images(30), tmp_path / "x.pt")
    assert len(load_splits(own("rooted"), tmp_path, val_fraction=0).train) == 30


def test_a_data_set_is_read_once():
    Reading.reads.clear()
    load_splits(own("reading"))
    assert set(Reading.reads) == set(range(30))
    assert len(Reading.reads) <= 30 + 4  # the first samples are compared with a second read
    Reading.reads.clear()
    check_data(own("reading"))
    assert Reading.reads == [0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("four", "got 4 parts"),
        ("nothing", "got NoneType"),
        ("loader", "got a DataLoader"),
        ("empty", "test must have samples, got none"),
        ("unlabelled", r"must be \(image, label\)"),
        ("normalised", r"must be in \[0, 1\], got \[-"),
        ("float_labels", "must be an integer"),
        ("flat", "must have shape"),
        ("fails", "FileNotFoundError: photos.tar is not there"),
        ("needs_arguments", "called without arguments"),
        ("missing", "no function 'missing'"),
    ],
)
def test_a_mistake_is_refused_before_any_work(name, message):
    with pytest.raises(UserError, match=message):
        check_data(own(name))


def test_labels_with_gaps_are_refused_when_they_are_read():
    with pytest.raises(UserError, match="without gaps"):
        load_splits(own("gap"))


def test_a_root_that_the_function_does_not_take_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"leave out data.root"):
        check_data(own("two"), tmp_path)


def test_the_registered_name_has_the_function_alone():
    config = Config.model_validate({"data": {"name": own("two")}})
    assert registered_name(config) == "raymi-two"
