"""Bounds on mutual information against double loops, released values and their own laws."""

from __future__ import annotations

import math

import pytest
import torch
from golden_values import golden

from raymi.mi.bounds import donsker_varadhan, infonce, jensen_shannon


def random_scores(num=5, locations=3, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num, num, locations, dtype=torch.float64, generator=generator)


def softplus(t):
    return math.log1p(math.exp(t))


def naive_bounds(scores):
    """(InfoNCE, DV, JSD) of each sample, by loops over pairs and locations."""
    T, num, locations = scores.tolist(), scores.shape[0], scores.shape[2]
    rows = []
    for i in range(num):
        nce = dv = jsd = 0.0
        for p in range(locations):
            own = T[i][i][p]
            others = [T[i][j][p] for j in range(num) if j != i]
            nce += own - math.log(sum(math.exp(t) for t in [own, *others]) / num)
            dv += own - math.log(sum(math.exp(t) for t in others) / (num - 1))
            jsd += math.log(2) - softplus(-own)
            jsd -= sum(softplus(t) - math.log(2) for t in others) / (num - 1)
        rows.append([nce / locations, dv / locations, jsd / locations])
    return torch.tensor(rows, dtype=torch.float64).T


def test_bounds_equal_loops_over_pairs_and_locations():
    scores = random_scores()
    vectorised = torch.stack([b(scores) for b in (infonce, donsker_varadhan, jensen_shannon)])
    torch.testing.assert_close(vectorised, naive_bounds(scores), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bound", [infonce, donsker_varadhan, jensen_shannon])
def test_gradients_are_those_of_finite_differences(bound):
    assert torch.autograd.gradcheck(bound, random_scores(4, 2).requires_grad_())


@pytest.mark.parametrize("bound", [infonce, donsker_varadhan])
def test_adding_a_constant_to_all_scores_changes_nothing(bound):
    scores = random_scores()
    torch.testing.assert_close(bound(scores + 37.5), bound(scores), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 10, 1000])
def test_infonce_never_exceeds_log_batch(scale):
    scores = random_scores(6, scale=scale)
    assert (infonce(scores) <= math.log(6) + 1e-12).all()
    perfect = scores + 1e4 * torch.eye(6)[:, :, None]
    torch.testing.assert_close(infonce(perfect), torch.full((6,), math.log(6)).double())


def test_jensen_shannon_never_exceeds_two_log_two():
    perfect = 1e3 * (2 * torch.eye(6)[:, :, None] - 1).expand(6, 6, 3)
    assert jensen_shannon(perfect).tolist() == pytest.approx([2 * math.log(2)] * 6)
    assert (jensen_shannon(random_scores(6, scale=10)) <= 2 * math.log(2)).all()


@pytest.mark.parametrize("bound", [infonce, donsker_varadhan, jensen_shannon])
def test_scores_that_say_nothing_are_worth_nothing(bound):
    zeros = torch.zeros(4, 4, 3)
    assert bound(zeros).tolist() == pytest.approx([0.0] * 4, abs=1e-6)


@pytest.mark.parametrize("bound", [infonce, donsker_varadhan])
def test_a_batch_of_one_has_no_negatives_and_gives_zero(bound):
    scores = torch.tensor([[[3.0, -2.0]]], requires_grad=True)
    value = bound(scores)
    (grad,) = torch.autograd.grad(value.sum(), scores)
    assert value.tolist() == [0.0]
    assert grad.tolist() == [[[0.0, 0.0]]]


def golden_scores(scale):
    values = golden("critics")
    G = values["G"].requires_grad_()
    return torch.einsum("ih,jhp->ijp", G[:, :, 0], scale * values["L"]), G, values


def test_donsker_varadhan_leaves_the_positive_out_of_the_negatives():
    scores, _, values = golden_scores(1)
    expected = -values["dv_excluded_per_sample_unit"]
    torch.testing.assert_close(donsker_varadhan(scores), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("tag", "scale"), [("unit", 1), ("small", 0.1), ("large", 10)])
def test_jensen_shannon_reproduces_the_released_values(tag, scale):
    scores, G, values = golden_scores(scale)
    loss = -jensen_shannon(scores).mean()
    (grad,) = torch.autograd.grad(loss, G)
    torch.testing.assert_close(loss, values[f"fd_JSD_{tag}"], rtol=1e-9, atol=1e-12)
    expected = values[f"fd_JSD_gradG_{tag}"]
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-9 * expected.abs().max().item())
