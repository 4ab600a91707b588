from __future__ import annotations

import pytest
import torch

from raymi.data.stratify import first_of_each_class, hold_out
from raymi.errors import UserError


def random_labels(num_samples: int, num_classes: int, seed: int = 0) -> torch.Tensor:
    """Labels of very unequal classes."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(num_samples, generator=generator).square() * num_classes).long()


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.29, 0.5, 0.99])
@pytest.mark.parametrize("num_classes", [1, 2, 7, 40])
def test_hold_out_partitions_with_the_exact_fraction_of_every_class(fraction, num_classes):
    labels = random_labels(311, num_classes)
    kept, held = hold_out(labels, fraction, key=1)
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(311))
    assert len(held) == round(fraction * 311)
    counts = torch.bincount(labels, minlength=num_classes)
    held_counts = torch.bincount(labels[held], minlength=num_classes)
    assert (held_counts - fraction * counts).abs().max() < 1


def test_hold_out_returns_ascending_indices_that_depend_on_the_key():
    labels = random_labels(200, 5)
    kept, held = hold_out(labels, 0.3, key=1)
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(held, hold_out(labels, 0.3, key=1)[1])
    assert not torch.equal(held, hold_out(labels, 0.3, key=2)[1])


def test_hold_out_is_spread_over_the_whole_class():
    _, held = hold_out(torch.zeros(10_000, dtype=torch.int64), 0.1, key=5)
    assert abs(held.double().mean().item() - 5000) < 300  # standard error about 90


def test_any_fraction_leaves_one_sample_on_each_side():
    labels = torch.tensor([0, 1, 1])
    assert [len(part) for part in hold_out(labels, 0.001, key=0)] == [2, 1]
    assert [len(part) for part in hold_out(labels, 0.999, key=0)] == [1, 2]
    assert [len(part) for part in hold_out(labels, 0.0, key=0)] == [3, 0]
    with pytest.raises(UserError, match="at least 2"):
        hold_out(labels[:1], 0.5, key=0)


def test_first_of_each_class_equals_the_naive_loop():
    labels = random_labels(97, 6, seed=3)
    for limit in (0, 1, 5, 6, 50, 96, 97, 500):
        chosen = first_of_each_class(labels, limit)
        quota = torch.bincount(labels[chosen], minlength=6)
        expected = [i for i in range(97) if (labels[:i] == labels[i]).sum() < quota[labels[i]]]
        assert chosen.tolist() == expected
        assert len(chosen) == min(limit, 97)
        share = torch.bincount(labels, minlength=6) * min(limit, 97) / 97
        assert (quota - share).abs().max() < 1
