"""Random numbers are a pure function of (key, index, position), and well distributed."""

from __future__ import annotations

import math

import pytest
import torch

from raymi.counter_rng import integers, normal, permutation, random_key, uniform

MANY = torch.arange(20_000)


@pytest.mark.parametrize("draw", [uniform, normal], ids=["uniform", "normal"])
def test_the_numbers_of_a_sample_depend_on_its_index_and_not_on_the_batch(draw):
    key, index = random_key(1, "test"), torch.randperm(500)
    everyone = draw(key, index, (3, 5, 7))
    alone = torch.cat([draw(key, index[i : i + 1], (3, 5, 7)) for i in range(0, 500, 7)])
    assert torch.equal(everyone[::7], alone)


@pytest.mark.parametrize("draw", [uniform, normal], ids=["uniform", "normal"])
def test_a_longer_draw_begins_with_the_shorter_one(draw):
    assert torch.equal(draw(3, MANY[:9], (8,))[:, :5], draw(3, MANY[:9], (5,)))


def test_keys_change_with_value_type_and_order():
    keys = [
        random_key(1, "a", 2), random_key(2, "a", 1), random_key("1", "a", 2), random_key(1, "a"),
        random_key(1, "b", 2), random_key("a", 1, 2),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_numbers_are_the_same_in_every_version():
    """Literals: a change would silently alter every run that is continued."""
    assert random_key(0, "order", 1) == 251157608447473956
    assert permutation(random_key(0, "order", 0), 8).tolist() == [3, 6, 2, 0, 7, 4, 5, 1]


def mix(z):
    """SplitMix64's finaliser on unsigned Python integers."""
    mask = 2**64 - 1
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize("key", [12345, -1, 2**63 - 1, -(2**63)])
def test_bits_equal_those_of_splitmix_streams_in_plain_integers(key):
    drawn = uniform(key, torch.tensor([0, 7, 2**40]), (3,)).double() * 2**24
    for row, index in zip(drawn.tolist(), (0, 7, 2**40), strict=True):
        stream = mix((mix(index) + key) % 2**64)
        words = [mix((stream + j * 0x9E3779B97F4A7C15) % 2**64) for j in range(3)]
        assert row == [word >> 40 for word in words]


def test_uniform_numbers_fill_the_unit_interval_evenly():
    u = uniform(random_key("u"), MANY, (5,)).double()
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, bins=100, min=0, max=1)
    expected = u.numel() / 100
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi_square - 99) < 5 * math.sqrt(2 * 99)


def test_neighbours_are_not_correlated():
    """Neither positions of a sample, nor neighbouring samples, nor neighbouring keys."""
    u = uniform(41, MANY, (2,)).double() - 0.5
    other_key = uniform(40, MANY, (2,)).double() - 0.5
    for a, b in ((u[:, 0], u[:, 1]), (u[:-1, 0], u[1:, 0]), (u[:, 0], other_key[:, 0])):
        correlation = (a * b).mean() / (a.std() * b.std())
        assert abs(correlation) < 5 / math.sqrt(len(MANY))


def test_normal_numbers_have_the_moments_of_the_normal_distribution():
    z = normal(random_key("z"), MANY, (5,)).double()
    num = z.numel()
    assert z.isfinite().all()
    assert abs(z.mean()) < 5 / math.sqrt(num)
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / num)
    assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96 / num)


def test_normal_numbers_are_finite_at_both_ends_of_the_grid(monkeypatch):
    ends = torch.tensor([0.0, 1 - 2.0**-24])
    monkeypatch.setattr("raymi.counter_rng.uniform", lambda *_: ends)
    low, high = normal(0, torch.arange(2))
    assert low == -high
    assert high.isfinite()


def test_integers_take_every_value_below_high_equally_often():
    counts = integers(random_key("i"), MANY, 7, (5,)).flatten().bincount()
    assert len(counts) == 7
    expected = 5 * len(MANY) / 7
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


def test_a_permutation_visits_everything_once_and_depends_on_its_key():
    order = permutation(5, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, permutation(5, 1000))
    assert (order == permutation(6, 1000)).sum() < 10


def test_empty_draws_have_the_right_shape():
    assert uniform(1, torch.arange(0), (3, 4)).shape == (0, 3, 4)
    assert normal(1, torch.arange(0), (3, 4)).shape == (0, 3, 4)
    assert uniform(1, torch.arange(3)).shape == (3,)


def test_the_global_random_state_stays_unchanged():
    before = torch.get_rng_state()
    normal(1, MANY[:9], (4,)), integers(1, MANY[:9], 3), permutation(1, 9)
    assert torch.equal(before, torch.get_rng_state())
