"""Balls around images: projections, steepest steps and random points."""

from __future__ import annotations

import math

import pytest
import torch

from raymi.attacks.projections import (
    gaussian_start,
    l2_norms,
    project,
    random_start,
    steepest_step,
)

ULP = 2.0**-24
PROJECTIONS = ["ball-first", "box-first"]


@pytest.fixture
def x():
    return torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def far_from(x, size=3.0):
    return x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def test_l2_norms_are_per_sample(x):
    for row, norm in zip(x, l2_norms(x), strict=True):
        assert norm.item() == pytest.approx(row.double().square().sum().sqrt().item(), rel=1e-6)
    assert l2_norms(x).shape == (6, 1, 1, 1)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projections_lie_in_ball_and_range_and_leave_inner_points(x, norm, projection):
    projected = project(x, far_from(x), 0.3, norm, projection)
    delta = (projected - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert (size <= 0.3 * (1 + 1e-6) + ULP).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    inside = (x + 1e-3 * (far_from(x) - x)).clamp(0, 1)
    again = project(x, inside, 0.3, norm, projection)
    torch.testing.assert_close(again, inside, rtol=0, atol=2 * ULP)
    torch.testing.assert_close(project(x, x, 0.3, norm, projection), x, rtol=0, atol=0)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_the_l2_projection_is_the_nearest_point_of_the_sphere(x, projection):
    centre = torch.full_like(x, 0.5)
    away = centre + 0.4 * steepest_step(far_from(centre) - centre, "l2")  # inside of [0, 1]
    expected = centre + 0.3 * (away - centre) / l2_norms(away - centre)
    torch.testing.assert_close(project(centre, away, 0.3, "l2", projection), expected)


def test_in_linf_the_order_of_the_projections_does_not_matter(x):
    ball_first, box_first = (project(x, far_from(x), 0.3, "linf", p) for p in PROJECTIONS)
    assert torch.equal(ball_first, box_first)


def test_in_l2_box_first_uses_the_radius_that_clamped_pixels_leave():
    x = torch.tensor([0.1, 0.5]).view(1, 1, 1, 2)
    away = torch.tensor([-0.7, 0.9]).view(1, 1, 1, 2)  # 0.8 down, 0.4 up
    ball_first, box_first = (project(x, away, 0.2, "l2", p) - x for p in PROJECTIONS)
    share = 0.2 / 0.8**0.5
    assert ball_first.flatten().tolist() == pytest.approx([-0.1, 0.4 * share], abs=1e-6)
    share = 0.2 / 0.17**0.5
    assert box_first.flatten().tolist() == pytest.approx([-0.1 * share, 0.4 * share], abs=1e-6)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_steepest_steps_have_unit_norm_or_are_zero_for_zero_gradients(x, projection):
    grad = far_from(x) * 1e-3
    grad[2] = 0
    sign, direction = (steepest_step(grad, norm, projection) for norm in ("linf", "l2"))
    assert torch.equal(sign, grad.sign())
    norms = l2_norms(direction).flatten()
    torch.testing.assert_close(norms, torch.tensor([1.0, 1, 0, 1, 1, 1]))


def middle(num, shape=(3, 8, 8)):
    return torch.full((num, *shape), 0.5)


def test_linf_starts_are_uniform_in_the_ball():
    x = middle(200)
    delta = (random_start(x, 0.1, "linf", 7, torch.arange(200)) - x) / 0.1
    assert delta.abs().max() <= 1 + 1e-5
    counts = torch.histc(delta, bins=20, min=-1, max=1)
    expected = delta.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 19 + 5 * math.sqrt(2 * 19)


def test_l2_starts_have_uniform_radius_and_no_preferred_direction():
    x = middle(1000)
    delta = random_start(x, 0.4, "l2", 7, torch.arange(1000)) - x
    radius = l2_norms(delta).flatten() / 0.4
    assert radius.max() <= 1 + 1e-5
    assert ((torch.histc(radius, bins=10, min=0, max=1) - 100).abs() < 50).all()
    direction = (delta / l2_norms(delta)).flatten(1)
    dimensions = direction.shape[1]
    assert direction.mean(0).abs().max() < 5 / math.sqrt(1000 * dimensions)
    assert direction.square().mean(0).sub(1 / dimensions).abs().max() < 0.35 / dimensions


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_are_a_function_of_key_and_sample(norm):
    index = torch.tensor([4, 11, 0, 7])
    starts = random_start(middle(4), 0.1, norm, 7, index)
    alone = random_start(middle(1), 0.1, norm, 7, index[1:2])
    assert torch.equal(starts[1:2], alone)
    shuffled = random_start(middle(4), 0.1, norm, 7, index.flip(0))
    assert torch.equal(shuffled.flip(0), starts)
    assert not torch.equal(random_start(middle(4), 0.1, norm, 8, index), starts)
    assert len({tuple(start.flatten().tolist()) for start in starts}) == 4


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_are_images_and_keep_the_global_random_state(norm):
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    before = torch.get_rng_state()
    start = random_start(x, 0.3, norm, 7, torch.arange(2))
    assert torch.equal(before, torch.get_rng_state())
    assert start.min() >= 0
    assert start.max() <= 1
    assert not torch.equal(start, x)


def test_gaussian_starts_are_near_the_image_and_a_function_of_key_and_sample():
    before = torch.get_rng_state()
    noise = gaussian_start(middle(200), 7, torch.arange(200)) - 0.5
    assert torch.equal(before, torch.get_rng_state())
    assert noise.std().item() == pytest.approx(1e-3, rel=0.02)
    assert noise.mean().abs() < 5e-3 / noise.numel() ** 0.5
    alone = gaussian_start(middle(1), 7, torch.tensor([11]))
    assert torch.equal(alone - 0.5, noise[11:12])
    assert not torch.equal(gaussian_start(middle(1), 8, torch.tensor([11])), alone)
