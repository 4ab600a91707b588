"""Identities, bounds, gradients and limits of the MI terms without estimators."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close
from torch import nn

from raymi.collectives import Shard
from raymi.mi.divergences import jensen_shannon, kl_divergence, refined_labels
from raymi.mi.forms.js import JensenShannon
from raymi.mi.forms.teacher import Teacher
from raymi.mi.settings import MIConfig

IMAGES, NOISES, CLASSES = 48, 24, 6
SEVEN = Shard.alone(7)


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def distributions(seed):
    """Logits of natural images (I, K), of noisy versions (I, N, K), and of a teacher (I, K)."""
    generator = torch.Generator().manual_seed(seed)
    natural = 2 * torch.randn(IMAGES, CLASSES, generator=generator)
    noisy = natural[:, None] + torch.randn(IMAGES, NOISES, CLASSES, generator=generator)
    teacher = natural + 0.7 * torch.randn(IMAGES, CLASSES, generator=generator)
    return natural, noisy, teacher


def mutual_information(joint):
    """I(A; B) in nats of a joint distribution (A, B), by its definition."""
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (joint * (joint / product).log()).sum()


@pytest.mark.parametrize("seed", range(3))
def test_the_reverse_kl_is_at_least_the_adversarial_mi(seed):
    """E KL(p' || r) = I(Yhat; N | X) + E KL(mean p' || r)."""
    _, noisy, teacher = distributions(seed)
    p = noisy.softmax(-1)
    exact = torch.stack([mutual_information(rows / NOISES) for rows in p]).mean()
    log_r = teacher.log_softmax(-1).repeat_interleave(NOISES, 0)
    upper = kl_divergence(noisy.flatten(0, 1).log_softmax(-1), log_r).mean()
    slack = kl_divergence(p.mean(1).log(), teacher.log_softmax(-1)).mean()
    assert_close(upper, exact + slack, tolerance=1e-12)
    assert upper > exact


def term_at(mi, r_logits):
    """A term whose teacher has the given output, computed for a batch."""
    network = nn.Linear(1, 1, bias=False)
    term = Teacher(network, mi)
    rows = iter([r_logits])
    network.forward = lambda x: next(rows)
    num = len(r_logits)
    y = r_logits.argmax(1)
    return term, term.target(torch.zeros(num, 1), y, Shard.alone(num))


@pytest.mark.parametrize("seed", range(3))
def test_the_natural_bound_is_at_most_the_mi_of_code_and_adversarial_image(seed):
    """T ~ r; each natural image has the same probability and one adversarial image."""
    _, noisy, teacher = distributions(seed)
    exact = mutual_information(teacher.softmax(1) / IMAGES)
    term, _ = term_at(MIConfig(form="teacher"), teacher)
    images = torch.zeros(IMAGES, 1)
    _, metrics = term(images, images, images, noisy[:, 0], images, Shard.alone(IMAGES))
    assert metrics["mi/natural_lower"] < exact < math.log(CLASSES)
    _, at_best = term(images, images, images, teacher, images, Shard.alone(IMAGES))
    assert_close(at_best["mi/natural_lower"], exact, tolerance=1e-12)
    assert at_best["mi/adversarial_upper"].abs() < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_jensen_shannon_is_the_mi_of_output_and_coin(seed):
    natural, noisy, _ = distributions(seed)
    js = jensen_shannon(natural, noisy[:, 0])
    for value, p, q in zip(js, natural.softmax(1), noisy[:, 0].softmax(1), strict=True):
        assert_close(value, mutual_information(torch.stack([p, q]) / 2), tolerance=1e-12)
    assert (js <= math.log(2)).all()
    apart = 400 * torch.eye(2)
    assert_close(jensen_shannon(apart, apart.flip(0)), torch.full((2,), math.log(2)))
    assert (jensen_shannon(natural, natural).abs() < 1e-15).all()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    z, z_adv, r = 2 * torch.randn(3, 7, 4, generator=generator)
    return z.requires_grad_(), z_adv.requires_grad_(), r


def naive_kl(p, q):
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True))


def expect_equal(loss, naive, leaves):
    assert_close(loss, naive, tolerance=1e-12)
    pairs = zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(naive, leaves), strict=True)
    for computed, expected in pairs:
        assert_close(computed, expected, tolerance=1e-12)


def test_jensen_shannon_and_its_gradients_equal_a_loop():
    z, z_adv, _ = batch()
    loss, metrics = JensenShannon()(z, z, z, z_adv, z, SEVEN)
    naive = 0
    for p, q in zip(z.softmax(1), z_adv.softmax(1), strict=True):
        naive = naive + (naive_kl(p, (p + q) / 2) + naive_kl(q, (p + q) / 2)) / 2 / 7
    assert torch.equal(metrics["mi/js"], loss.detach())
    expect_equal(loss, naive, [z, z_adv])


@pytest.mark.parametrize("kinds", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_teacher_s_loss_and_its_gradient_equal_a_loop(kinds, temperature):
    natural, adversarial = kinds
    z, z_adv, r = batch()
    settings = {"natural": natural, "adversarial": adversarial, "teacher_temperature": temperature}
    term, _ = term_at(MIConfig(form="teacher", **settings), r)
    loss, metrics = term(z, z, z, z_adv, z, SEVEN)
    forward = reverse = cross_entropy = 0
    codes = (r / temperature).softmax(1)
    for p, t in zip(z_adv.softmax(1), codes, strict=True):
        forward, reverse = forward + naive_kl(t, p) / 7, reverse + naive_kl(p, t) / 7
        cross_entropy = cross_entropy - (t * p.log()).sum() / 7
    expect_equal(loss, natural * forward + adversarial * reverse, [z_adv])
    entropy = -(codes.mean(0) * codes.mean(0).log()).sum()
    assert_close(metrics["mi/adversarial_upper"], reverse.detach(), tolerance=1e-12)
    assert_close(metrics["mi/natural_lower"], (entropy - cross_entropy).detach(), tolerance=1e-12)
    assert_close(metrics["mi/teacher_max"], codes.amax(1).mean(), tolerance=1e-12)


def test_adr_s_target_is_the_published_one():
    """l_i r + (1 - l_i) onehot, l_i = clip(trust - (max r - r_y), 0, 1), by a loop."""
    _, _, r_logits = batch()
    mi = MIConfig(form="adr", teacher_temperature=2.0, weight=0.8)
    network = nn.Linear(1, 1)
    network.forward = lambda x: r_logits
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    target = Teacher(network, mi).target(torch.zeros(7, 1), y, SEVEN)
    shares = []
    for row, r, label in zip(target, (r_logits / 2).softmax(1), y.tolist(), strict=True):
        share = min(max(0.8 - (max(r.tolist()) - r[label].item()), 0), 1)
        onehot = torch.eye(4)[label]
        assert_close(row, share * r + (1 - share) * onehot, tolerance=1e-12)
        shares.append(share)
    assert len({round(share, 6) for share in shares}) > 2
    assert_close(target.sum(1), torch.ones(7), tolerance=1e-12)


def test_a_one_hot_teacher_leaves_cross_entropy_with_the_labels():
    z, z_adv, _ = batch()
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    certain = 800 * F.one_hot(y, 4).double()
    term, _ = term_at(MIConfig(form="teacher", adversarial=False), certain)
    loss, _ = term(z, z, z, z_adv, y, SEVEN)
    expect_equal(loss, F.cross_entropy(z_adv, y), [z_adv])
    target, share = refined_labels(certain.softmax(1), y, 0.7)
    assert torch.equal(target, F.one_hot(y, 4).double())
    assert (share == 0.7).all()


def test_no_trust_in_a_teacher_leaves_the_labels():
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    assert torch.equal(refined_labels(batch()[2].softmax(1), y, 0.0)[0], F.one_hot(y, 4).double())


@pytest.mark.parametrize("apart", [0.0, 300.0])
def test_gradients_are_finite_where_outputs_are_certain_or_equal(apart):
    z = torch.tensor([[apart, -apart, 0.0]]).repeat(7, 1).requires_grad_()
    z_adv = -z.detach() if apart else z.detach().clone()
    z_adv.requires_grad_()
    term, _ = term_at(MIConfig(form="teacher"), z.detach())
    for one, leaves in ((JensenShannon(), [z, z_adv]), (term, [z_adv])):
        loss, _ = one(z, z, z, z_adv, z, SEVEN)
        assert all(grad.isfinite().all() for grad in (loss, *torch.autograd.grad(loss, leaves)))
