"""Critics trained on jointly Gaussian pairs estimate a mutual information that is known."""

from __future__ import annotations

import math

import pytest
import torch

from raymi.collectives import Shard
from raymi.mi.estimators import LocalDIM
from raymi.mi.matching import Matching, match
from raymi.mi.objectives import estimator_loss

pytestmark = pytest.mark.slow

BATCH = 128
COORDINATES = 10  # of the pattern, each correlated with one logit


def gaussian_pairs(nats: float, num: int, generator: torch.Generator):
    """Patterns (num, 3, 4, 4) and logits (num, 10), all standard normal, that share `nats`.

    Ten pixels each have correlation rho with one logit: MI = -10/2 log(1 - rho^2). The other
    pixels are zero.
    """
    rho = math.sqrt(1 - math.exp(-2 * nats / COORDINATES))
    source, noise = torch.randn(2, num, COORDINATES, generator=generator)
    patterns = torch.zeros(num, 48)
    patterns[:, :COORDINATES] = source
    return patterns.view(num, 3, 4, 4), rho * source + math.sqrt(1 - rho**2) * noise


def matching_of(critic: LocalDIM, patterns: torch.Tensor, logits: torch.Tensor) -> Matching:
    outputs, features = critic.global_features(logits), critic.local_features(patterns)
    return match(outputs, features, Shard.alone(len(logits)))


def estimate_after_training(
    nats: float, seed: int = 0, steps: int = 400, batches: int = 100
) -> float:
    """Leave-one-out DV in nats, of fresh pairs, by a critic trained with InfoNCE on other ones.

    The mean over 100 batches has a standard error of about 0.01 nats.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    critic = LocalDIM(COORDINATES, 4, hidden=64, base_width=16, depth=2)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for _ in range(steps):
        estimates = matching_of(critic, *gaussian_pairs(nats, BATCH, generator)).infonce()
        loss = estimator_loss(estimates, None, None, Shard.alone(BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    critic.eval()
    with torch.no_grad():
        fresh = [gaussian_pairs(nats, BATCH, generator) for _ in range(batches)]
        values = [matching_of(critic, *pairs).donsker_varadhan().mean() for pairs in fresh]
    return torch.stack(values).mean().item()


@pytest.mark.exhaustive
def test_independent_pairs_are_estimated_at_0_nats():
    """Seen with seeds 0 to 2: -0.006, -0.006, -0.004."""
    assert abs(estimate_after_training(0.0)) < 0.05


@pytest.mark.parametrize(
    "nats",
    [
        pytest.param(0.5, marks=pytest.mark.exhaustive),
        pytest.param(1.0, marks=pytest.mark.exhaustive),
        2.0,
    ],
)
def test_known_mutual_information_is_estimated_from_below(nats):
    """Between 30% below and 10% above.

    Seen with seeds 0 to 2: 0.41 to 0.43, 0.87 to 0.90 and 1.80 to 1.84 nats. What is missing is
    mostly training: 1600 steps gave 0.48, 0.98 and 1.96. With noise in the other pixels 400 steps
    gave 0.36, 0.79 and 1.71, and with a temperature of 0.2, which bounds scores by 5, 1.5 of 2.
    """
    estimate = estimate_after_training(nats)
    assert 0.7 * nats < estimate < 1.1 * nats
