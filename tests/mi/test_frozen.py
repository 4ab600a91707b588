"""Estimates of which only the slopes are kept have the value and the gradient of the whole ones."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from torch import nn

from raymi.benchmarks.saved import bytes_held
from raymi.collectives import Collectives
from raymi.config import MIConfig
from raymi.engine.estimator_task import score_outputs
from raymi.mi.bounds import F_DIVERGENCES
from raymi.mi.estimators import LocalDIM
from raymi.mi.frozen import sloped_estimates

BOUNDS = ["infonce", "dv", "infonce-released", "dv-released", *F_DIVERGENCES]


def estimator_of(bound, num, hidden, size=8, dtype=torch.float64):
    """A frozen critic's estimate as a function of the logits."""
    torch.manual_seed(0)
    critic = LocalDIM(5, size, hidden=hidden, base_width=4).to(dtype).eval()
    mi, x = MIConfig(bound=bound), torch.rand(num, 3, size, size, dtype=dtype)
    with torch.no_grad():
        features = critic.local_features(x)
    return lambda z: score_outputs(critic, z, features, [num], mi, Collectives()).bound(bound)


@pytest.mark.parametrize("bound", BOUNDS)
def test_value_and_gradient_equal_the_full_estimate(bound):
    estimate = estimator_of(bound, 12, 16)
    z = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for values in (estimate(z), sloped_estimates(estimate, z)):
        loss = (torch.arange(12) * values).sum() + values.square().mean()  # couples the samples
        results.append((values.detach(), *torch.autograd.grad(loss, z)))
    for sloped, whole in zip(results[1], results[0], strict=True):
        assert_close(sloped, whole, tolerance=1e-12)


@pytest.mark.parametrize("bound", ["dv", pytest.param("infonce", marks=pytest.mark.exhaustive)])
def test_less_than_two_megabytes_are_saved_for_backward(bound):
    """256 samples and 2048 units: 134 MB of local features, 17 MB of scores."""
    estimate = estimator_of(bound, 256, 2048, size=32, dtype=torch.float32)
    logits = torch.randn(256, 5, requires_grad=True)
    assert bytes_held([estimate(logits)], nn.Module()) > 150e6
    assert bytes_held([sloped_estimates(estimate, logits)], nn.Module()) < 2e6


def test_without_gradient_there_are_no_slopes():
    estimate = estimator_of("infonce", 4, 8)
    logits = torch.randn(4, 5, dtype=torch.float64)
    assert not sloped_estimates(estimate, logits).requires_grad
    with torch.no_grad():
        assert not sloped_estimates(estimate, logits.requires_grad_()).requires_grad
