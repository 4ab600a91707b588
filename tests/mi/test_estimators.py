"""Local DIM critics: shapes, the start near the identity, and bounded scores."""

from __future__ import annotations

import pytest
import torch

from raymi.errors import UserError
from raymi.mi.estimators import Block1x1, LocalDIM


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 16, 28, 30, 32, 64])
def test_local_features_have_one_vector_for_each_location(size, depth):
    critic = LocalDIM(10, size, hidden=12, base_width=4, depth=depth)
    locations = (size // 2**depth) ** 2
    assert critic.local_features(torch.rand(3, 3, size, size)).shape == (3, 12, locations)
    assert critic.global_features(torch.randn(3, 10)).shape == (3, 12)


def test_the_papers_estimator_has_64_locations_of_a_cifar_image():
    critic = LocalDIM(10, 32, hidden=2048)
    assert critic.local_features(torch.rand(2, 3, 32, 32)).shape == (2, 2048, 64)
    widths = [layer[0].out_channels for layer in critic.local.layers]
    assert widths == [64, 128]


def test_an_image_too_small_for_the_depth_is_refused_with_the_largest_depth():
    LocalDIM(10, 8, depth=3, hidden=4, base_width=2)
    with pytest.raises(UserError, match=r"depth must be at most 3 for 8-pixel images, got 4"):
        LocalDIM(10, 8, depth=4)


def test_the_shortcut_starts_near_the_identity():
    weight = Block1x1(5, 9).linear_shortcut.weight[:, :, 0, 0]
    diagonal = torch.eye(9, 5, dtype=torch.bool)
    assert (weight[diagonal] == 1).all()
    assert weight[~diagonal].abs().max() <= 0.01
    assert weight[~diagonal].std() > 0.004


def test_features_of_a_block_are_normalised_at_each_location():
    features = Block1x1(6, 32)(torch.randn(4, 6, 3, 3))
    torch.testing.assert_close(features.mean(1), torch.zeros(4, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        features.var(1, correction=0), torch.ones(4, 3, 3), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("hidden", [8, 64])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_cosine_scores_are_at_most_one_over_the_temperature(hidden, temperature):
    critic = LocalDIM(10, 16, hidden=hidden, base_width=4, temperature=temperature)
    u, logits = 5 * torch.randn(6, 3, 16, 16), 5 * torch.randn(6, 10)
    L, G = critic.local_features(u), critic.global_features(logits)
    assert torch.einsum("ih,jhp->ijp", G, L).abs().max() <= (1 + 1e-5) / temperature
    torch.testing.assert_close(L.norm(dim=1), torch.ones(6, 16))
    torch.testing.assert_close(G.norm(dim=1), torch.full((6,), 1 / temperature))


def test_dot_scores_are_products_of_layer_normed_features():
    torch.manual_seed(1)
    cosine = LocalDIM(10, 8, hidden=32, base_width=4, temperature=0.5).eval()
    dot = LocalDIM(10, 8, hidden=32, base_width=4, score="dot").eval()
    dot.load_state_dict(cosine.state_dict())
    u, logits = torch.rand(4, 3, 8, 8), torch.randn(4, 10)
    raw = torch.einsum("ih,jhp->ijp", dot.global_features(logits), dot.local_features(u))
    scaled = torch.einsum("ih,jhp->ijp", cosine.global_features(logits), cosine.local_features(u))
    # at the start LayerNorm has no bias: norms are sqrt(H), so dot scores are H times cosines
    torch.testing.assert_close(raw, 32 * 0.5 * scaled, rtol=1e-3, atol=1e-4)
    assert dot.local_features(u).norm(dim=1).max() > 5


def test_a_constant_pattern_has_finite_gradients():
    """Adversarial noise is all zeros where eps is 0."""
    critic = LocalDIM(3, 8, hidden=8, base_width=2)
    logits = torch.zeros(4, 3, requires_grad=True)
    scores = critic.global_features(logits) @ critic.local_features(torch.zeros(4, 3, 8, 8))
    scores.sum().backward()
    grads = [logits.grad, *(p.grad for p in critic.parameters())]
    assert all(grad.isfinite().all() for grad in grads)
