"""Bounds on mutual information against double loops, released values and their own laws."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from closeness import assert_close
from golden_values import golden

from raymi.mi.bounds import (
    F_DIVERGENCES,
    donsker_varadhan,
    f_divergence,
    infonce,
    reference_donsker_varadhan,
    reference_infonce,
)

jensen_shannon = partial(f_divergence, name="jsd")
EVERY_F_DIVERGENCE = [partial(f_divergence, name=name) for name in F_DIVERGENCES]
RELEASED = [reference_infonce, reference_donsker_varadhan]
TAGS = [("unit", 1), ("small", 0.1), ("large", 10)]


def name_of(bound):
    return bound.keywords["name"] if isinstance(bound, partial) else bound.__name__


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


def test_reference_infonce_equals_loops_over_candidates():
    """Compares with all locations of other samples, and one entry of -10 for each location."""
    scores = random_scores()
    T, num, locations = scores.tolist(), scores.shape[0], scores.shape[2]
    expected = []
    for i in range(num):
        others = [t for j in range(num) for t in (T[i][j] if j != i else [-10.0] * locations)]
        total = sum(math.exp(t) for t in others)
        expected.append(sum(t - math.log(math.exp(t) + total) for t in T[i][i]) / locations)
    assert reference_infonce(scores).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "bound", [infonce, donsker_varadhan, *EVERY_F_DIVERGENCE, *RELEASED], ids=name_of
)
def test_gradients_equal_those_of_finite_differences(bound):
    assert torch.autograd.gradcheck(bound, random_scores(4, 2).requires_grad_())


@pytest.mark.parametrize("bound", [infonce, donsker_varadhan])
def test_adding_a_constant_to_all_scores_changes_nothing(bound):
    scores = random_scores()
    torch.testing.assert_close(bound(scores + 37.5), bound(scores), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bound", RELEASED, ids=name_of)
def test_adding_a_constant_to_all_scores_changes_the_reference_forms(bound):
    scores = random_scores()
    assert ((bound(scores - 12.0) - bound(scores)).abs() > 0.05).all()


def test_reference_infonce_is_never_above_zero():
    perfect = random_scores(6) + 1e4 * torch.eye(6)[:, :, None]
    assert (reference_infonce(random_scores(6)) < 0).all()
    assert reference_infonce(perfect).tolist() == [0.0] * 6


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
def test_constant_scores_give_zero(bound):
    zeros = torch.zeros(4, 4, 3)
    assert bound(zeros).tolist() == pytest.approx([0.0] * 4, abs=1e-6)


@pytest.mark.parametrize("bound", [infonce, donsker_varadhan])
def test_a_batch_of_one_has_no_negatives_and_gives_zero(bound):
    scores = torch.tensor([[[3.0, -2.0]]], requires_grad=True)
    value = bound(scores)
    (grad,) = torch.autograd.grad(value.sum(), scores)
    assert value.tolist() == [0.0]
    assert grad.tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize("bound", EVERY_F_DIVERGENCE, ids=name_of)
def test_f_divergences_of_a_batch_of_one_are_the_positive_part(bound):
    scores = torch.tensor([[[2.0, -1.0]]], requires_grad=True)
    value = bound(scores)
    positive = F_DIVERGENCES[bound.keywords["name"]].positive(scores[0]).mean(dim=1)
    torch.testing.assert_close(value, positive)
    assert torch.autograd.grad(value.sum(), scores)[0].isfinite().all()


@pytest.mark.parametrize("bound", EVERY_F_DIVERGENCE, ids=name_of)
def test_gradients_are_finite_if_an_own_score_s_exponential_overflows(bound):
    scores = (500.0 * torch.eye(3)[:, :, None].repeat(1, 1, 2)).requires_grad_()
    (grad,) = torch.autograd.grad(bound(scores).sum(), scores)
    assert grad.isfinite().all()


def golden_scores(scale):
    values = golden("critics")
    G = values["G"].requires_grad_()
    return torch.einsum("ih,jhp->ijp", G[:, :, 0], scale * values["L"]), G, values


def test_donsker_varadhan_leaves_the_positive_out_of_the_negatives():
    scores, _, values = golden_scores(1)
    expected = -values["dv_excluded_per_sample_unit"]
    assert_close(donsker_varadhan(scores), expected)


RELEASED_NAMES = {
    "jsd": "JSD",
    "gan": "GAN",
    "kl": "KL",
    "rkl": "RKL",
    "chi2": "X2",
    "hellinger": "H2",
    "wasserstein": "W1",
}


@pytest.mark.parametrize(("tag", "scale"), TAGS)
@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_f_divergences_reproduce_the_reference_values(name, tag, scale):
    scores, _, values = golden_scores(scale)
    loss = -f_divergence(scores, name).mean()
    expected = values[f"fd_{RELEASED_NAMES[name]}_{tag}"]
    assert_close(loss, expected)


@pytest.mark.parametrize(("tag", "scale"), TAGS)
def test_reference_infonce_reproduces_the_authors_code(tag, scale):
    scores, _, values = golden_scores(scale)
    loss = -reference_infonce(scores).mean()
    assert_close(loss, values[f"nce_{tag}"])


@pytest.mark.parametrize(("tag", "scale"), TAGS)
@pytest.mark.parametrize(
    ("bound", "stored"), [(jensen_shannon, "fd_JSD"), (reference_infonce, "nce")]
)
def test_gradients_reproduce_the_authors_code(bound, stored, tag, scale):
    scores, G, values = golden_scores(scale)
    (grad,) = torch.autograd.grad(-bound(scores).mean(), G)
    assert_close(grad, values[f"{stored}_gradG_{tag}"])


@pytest.mark.parametrize(("tag", "scale"), TAGS)
def test_reference_donsker_varadhan_reproduces_the_authors_code(tag, scale):
    scores, _, values = golden_scores(scale)
    loss = -reference_donsker_varadhan(scores)
    assert_close(loss, values[f"dv_per_sample_{tag}"])
    assert_close(loss.mean(), values[f"dv_mean_{tag}"])
