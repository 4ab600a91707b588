from __future__ import annotations

import pytest
import torch

from raymi.data import ImageSet
from raymi.data.image_set import channel_stats


def random_set(num_samples: int = 12, size: int = 6) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_samples, 3, size, size), generator=generator)
    return ImageSet(images.to(torch.uint8), torch.arange(num_samples) % 3, ("a", "b", "c"))


def test_digest_depends_on_content_only():
    assert (
        random_set().digest
        == random_set().to("cpu").digest
        == random_set().subset(range(12)).digest
    )
    assert len(random_set().digest) == 64


def test_digest_changes_with_one_pixel_one_label_and_the_shape():
    original = random_set()
    images, labels = original.images.clone(), original.labels.clone()
    images[7, 2, 5, 5] ^= 1
    labels[3] = 1
    changed = [
        ImageSet(images, original.labels, original.class_names),
        ImageSet(original.images, labels, original.class_names),
        ImageSet(original.images.view(12, 3, 4, 9), original.labels, original.class_names),
    ]
    assert len({original.digest, *(other.digest for other in changed)}) == 4


def test_digest_is_computed_once():
    samples = random_set()
    before = samples.digest
    samples.images.zero_()
    assert samples.digest is before


def test_subset_keeps_the_order_of_indices():
    samples = random_set()
    picked = samples.subset([5, 0, 5])
    assert len(picked) == 3
    assert picked.labels.tolist() == [2, 0, 2]
    torch.testing.assert_close(picked.images, samples.images[torch.tensor([5, 0, 5])])
    assert len(samples.subset([])) == 0


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32)),
    ],
)
def test_other_shapes_and_dtypes_are_refused(images, labels):
    with pytest.raises(ValueError, match="must be"):
        ImageSet(images, labels, ("a",))


def test_channel_stats_equal_the_definition():
    images = random_set(50).images
    mean, std = channel_stats(images)
    pixels = images.double().transpose(0, 1).reshape(3, -1) / 255
    torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean(1), rtol=1e-6, atol=0)
    expected_std = pixels.std(1, correction=0)
    torch.testing.assert_close(torch.tensor(std).double(), expected_std, rtol=1e-6, atol=0)


def test_a_constant_channel_has_a_positive_std():
    mean, std = channel_stats(torch.full((2, 3, 4, 4), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2, 0.2, 0.2))
    assert std == (1 / 255, 1 / 255, 1 / 255)
