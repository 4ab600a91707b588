"""Selection, critics' and classifier's losses (Eq. 4-8), each term against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from closeness import assert_close
from gloo import run_ranks
from shards import shard_of_rank

from raymi.collectives import Shard
from raymi.mi.estimation import EstimatorTask
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.objectives import (
    PairMI,
    clamp_mean,
    classifier_mi_loss,
    cosine_distance,
    estimator_loss,
    selected,
)
from raymi.mi.settings import MIConfig

FIVE = Shard.alone(5)
SOME = torch.tensor([True, False, True, True, False])
NONE = torch.zeros(5, dtype=torch.bool)


def estimates(count, num=5, seed=0, shift=1.0):
    generator = torch.Generator().manual_seed(seed)
    drawn = shift + torch.randn(count, num, dtype=torch.float64, generator=generator)
    return [row.clone().requires_grad_() for row in drawn]


def gradients(loss, leaves):
    return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def test_selected_samples_are_right_as_natural_and_wrong_as_adversarial_images():
    one_hot = torch.eye(3)
    y = torch.tensor([0, 0, 0, 0])
    logits, logits_adv = one_hot[[0, 0, 1, 1]], one_hot[[1, 0, 1, 0]]
    assert selected(logits, logits_adv, y).tolist() == [True, False, False, False]


def test_selection_is_independent_of_the_batch():
    """The released code's softmax over the batch does."""
    logits, logits_adv = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    together = selected(logits, logits_adv, y)
    alone = [selected(logits[i : i + 1], logits_adv[i : i + 1], y[i : i + 1]) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


def test_means_are_over_the_selected_samples():
    (a,) = estimates(1)
    assert FIVE.mean(a).item() == pytest.approx(a.mean().item())
    assert FIVE.mean(a, SOME).item() == pytest.approx(a[SOME].mean().item())


def test_unselected_values_may_be_nan():
    a = torch.tensor([1.0, math.nan], requires_grad=True)
    mean = Shard.alone(2).mean(a, torch.tensor([True, False]))
    (grad,) = gradients(mean, [a])
    assert mean == 1
    assert grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("mean", "value", "slope"), [(-0.5, 0, 0), (0.0, 0, 1), (1.0, 1, 1), (2.0, 2, 1), (2.5, 2, 0)]
)
def test_clamp_mean_gates_value_and_gradient(mean, value, slope):
    mean = torch.tensor(mean, requires_grad=True)
    clamped = clamp_mean(mean, 0.0, 2.0, FIVE)
    (grad,) = gradients(clamped, [mean])
    assert (clamped.item(), grad.item()) == (value, slope)


def clamped_on_a_rank(rank, world_size):
    local = torch.tensor([-3.0, 5.0][rank], requires_grad=True)  # the mean is 1, inside
    inside = clamp_mean(local, 0.0, 2.0, shard_of_rank([1, 1]))
    outside = clamp_mean(local, 2.0, 4.0, shard_of_rank([1, 1]))
    return (
        inside.item(), outside.item(),
        gradients(inside, [local])[0].item(), gradients(outside, [local])[0].item(),
    )  # fmt: skip


def test_clamp_mean_uses_the_mean_over_all_workers(tmp_path):
    results = run_ranks(clamped_on_a_rank, 2, tmp_path=tmp_path)
    assert results == [(-3.0, 2.0, 1.0, 0.0), (5.0, 2.0, 1.0, 0.0)]


def test_cosine_distance_is_one_cosine_over_the_selected_batch():
    a, b = estimates(2)
    expected = 1 - torch.nn.functional.cosine_similarity(a[SOME], b[SOME], dim=0)
    computed = cosine_distance(a, b, SOME, FIVE)
    torch.testing.assert_close(computed, expected, rtol=1e-12, atol=0)
    for mine, theirs in zip(gradients(computed, [a, b]), gradients(expected, [a, b]), strict=True):
        assert_close(mine, theirs, tolerance=1e-12)


@pytest.mark.parametrize(("sign", "distance"), [(1, 0.0), (-1, 2.0)])
def test_cosine_distance_is_between_0_and_2(sign, distance):
    (a,) = estimates(1)
    assert cosine_distance(a, sign * 3 * a, SOME, FIVE).item() == pytest.approx(distance, abs=1e-12)


def test_estimators_maximise_the_matching_mi():
    (own,) = estimates(1)
    loss = estimator_loss(own, None, None, FIVE)
    assert loss.item() == pytest.approx(-own.mean().item())


@pytest.mark.parametrize("shift", [3.0, -3.0])
@pytest.mark.parametrize("clip", [True, False])
def test_clipped_contrast_clamps_the_other_mi_at_zero(shift, clip):
    own, other = estimates(2, shift=shift)
    loss = estimator_loss(own, other, SOME, FIVE, clip=clip)
    other_mean = other[SOME].mean().item()
    counted = max(other_mean, 0.0) if clip else other_mean
    assert loss.item() == pytest.approx(counted - own[SOME].mean().item())
    (grad,) = gradients(loss, [other])
    pushed = (grad != 0).any().item()
    assert pushed == (shift > 0 or not clip)


BOTH = {"difference": 0.3, "cosine": 2.0}


def mi_loss(pair, mask=SOME, **changes):
    kinds = {"natural": PairMI(*pair[:2]), "adversarial": PairMI(*pair[2:])}
    return classifier_mi_loss(mask=mask, shard=FIVE, **{**kinds, **BOTH, **changes})


def test_classifier_loss_is_equation_8():
    pair = natural_of_adv, natural_of_nat, adversarial_of_adv, adversarial_of_nat = estimates(4)
    cosine = torch.nn.functional.cosine_similarity
    expected = (
        2.0
        * (
            (1 - cosine(natural_of_adv[SOME], natural_of_nat[SOME], dim=0)).abs()
            + (1 - cosine(adversarial_of_adv[SOME], adversarial_of_nat[SOME], dim=0)).abs()
        )
        + 0.3 * (adversarial_of_adv - natural_of_adv)[SOME].mean()
    )
    computed = mi_loss(pair)
    torch.testing.assert_close(computed, expected, rtol=1e-12, atol=0)
    for mine, theirs in zip(gradients(computed, pair), gradients(expected, pair), strict=True):
        assert_close(mine, theirs, tolerance=1e-12)


def test_without_a_mask_all_samples_count():
    pair = estimates(4)
    everything = torch.ones(5, dtype=torch.bool)
    assert mi_loss(pair, mask=None).item() == pytest.approx(mi_loss(pair, mask=everything).item())


def test_each_ablation_drops_its_own_terms():
    pair = estimates(4)
    i_n, i_a = mi_loss(pair, adversarial=None), mi_loss(pair, natural=None)
    assert (i_n + i_a).item() == pytest.approx(mi_loss(pair).item())
    silent = [grad.abs().sum().item() for grad in gradients(i_n, pair)]
    assert [value > 0 for value in silent] == [True, True, False, False]
    silent = [grad.abs().sum().item() for grad in gradients(i_a, pair)]
    assert [value > 0 for value in silent] == [False, False, True, True]


def test_without_lambda_only_the_cosines_remain_and_vice_versa():
    pair = estimates(4)
    cosines, difference = mi_loss(pair, difference=0.0), mi_loss(pair, cosine=0.0)
    assert (cosines + difference).item() == pytest.approx(mi_loss(pair).item())
    expected = 0.3 * (pair[2] - pair[0])[SOME].mean()
    assert difference.item() == pytest.approx(expected.item())


def test_an_empty_selection_contributes_zero_with_finite_gradients():
    pair = estimates(4)
    loss = mi_loss(pair, mask=NONE)
    assert loss.item() == 0
    assert all((grad == 0).all() for grad in gradients(loss, pair))
    contrast = estimator_loss(pair[0], pair[1], NONE, FIVE)
    assert contrast.item() == 0
    assert all((grad == 0).all() for grad in gradients(contrast, pair[:2]))


def test_zero_vectors_have_finite_gradients():
    a, b = torch.zeros(2, 5, dtype=torch.float64).requires_grad_().unbind()
    distance = cosine_distance(a, b, SOME, FIVE)
    assert distance.item() == 0
    assert all(grad.isfinite().all() for grad in gradients(distance, [a, b]))


def test_a_batch_of_one_is_finite():
    pair = estimates(4, num=1)
    loss = classifier_mi_loss(PairMI(*pair[:2]), PairMI(*pair[2:]), None, Shard.alone(1), **BOTH)
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in gradients(loss, pair))


def test_ranges_gate_each_kind_separately():
    pair = estimates(4, shift=10.0)
    capped = mi_loss(pair, cosine=0.0, natural_range=(0.0, 2.0))
    expected = 0.3 * (pair[2][SOME].mean() - 2.0)
    assert capped.item() == pytest.approx(expected.item())
    moved = [grad.abs().sum().item() > 0 for grad in gradients(capped, pair)]
    assert moved == [False, False, True, False]


def shares_of_the_loss(rank, world_size, sizes, mask):
    own, shard = slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), shard_of_rank(sizes)
    pair = [row.detach()[own].requires_grad_() for row in estimates(4)]
    kinds = {"natural": PairMI(*pair[:2]), "adversarial": PairMI(*pair[2:])}
    mask = None if mask is None else mask[own]
    loss = classifier_mi_loss(mask=mask, shard=shard, **{**kinds, **BOTH})
    critics = estimator_loss(pair[0], pair[1], mask, shard)
    both = torch.stack([loss, critics])
    grads = gradients(loss + critics, pair)
    return both.detach(), torch.stack(grads) / world_size


@pytest.mark.parametrize("mask", [None, SOME, NONE], ids=["all", "selected", "none"])
@pytest.mark.parametrize("sizes", [[3, 2], [4, 0, 1]], ids=str)
def test_losses_and_gradients_over_workers_equal_one_process(sizes, mask, tmp_path):
    pair = estimates(4)
    loss, critics = mi_loss(pair, mask=mask), estimator_loss(pair[0], pair[1], mask, FIVE)
    grads = torch.stack(gradients(loss + critics, pair))
    results = run_ranks(shares_of_the_loss, len(sizes), sizes, mask, tmp_path=tmp_path)
    values, parts = zip(*results, strict=True)
    mean = torch.stack(values).mean(0)
    assert_close(mean, torch.stack([loss, critics]), tolerance=1e-12)
    assert_close(torch.cat(parts, dim=1), grads, tolerance=1e-12)


def test_wmim_selects_samples_by_the_same_outputs_as_other_forms():
    """All are right as clean images and wrong as adversarial ones: none is left out."""
    torch.manual_seed(0)
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    right = 5 * torch.nn.functional.one_hot(y, 3).float()
    wrong = 5 * torch.nn.functional.one_hot((y + 1) % 3, 3).float()
    estimators = MIEstimators(LocalDIM(3, 8, hidden=16, base_width=4, depth=1), None)
    task = EstimatorTask(estimators, MIConfig(form="wmim", objective="contrast"))
    losses = [
        task(x, x, *outputs, y, Shard.alone(6))[0].item()
        for outputs in ((right, wrong), (wrong, right))
    ]
    assert losses[0] != 0
    assert losses[1] == 0, "an empty selection contributes 0"
