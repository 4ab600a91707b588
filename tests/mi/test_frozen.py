"""Estimates of which only the slopes are kept have the value and the gradient of the whole ones."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from torch import Tensor

from raymi.collectives import Shard
from raymi.mi.bounds import F_DIVERGENCES
from raymi.mi.estimation import score_outputs
from raymi.mi.estimators import LocalDIM
from raymi.mi.frozen import sloped_estimates
from raymi.mi.settings import MIConfig

BOUNDS = ["infonce", "dv", "infonce-released", "dv-released", *F_DIVERGENCES]


def estimator_of(bound, num, hidden, size=8, dtype=torch.float64):
    """A frozen critic's estimates as a function of logits."""
    torch.manual_seed(0)
    critic = LocalDIM(5, size, hidden=hidden, base_width=4).to(dtype).eval()
    mi, x = MIConfig(bound=bound), torch.rand(num, 3, size, size, dtype=dtype)
    with torch.no_grad():
        features = critic.local_features(x)

    def estimate(outputs):
        pairs = [(critic, z, features) for z in outputs]
        return [each.bound(bound) for each in score_outputs(pairs, Shard.alone(num), mi)]

    return estimate


@pytest.mark.parametrize("bound", BOUNDS)
def test_value_and_gradient_equal_the_full_estimate(bound):
    estimate = estimator_of(bound, 12, 16)
    z = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for (values,) in (estimate([z]), sloped_estimates(estimate, [z])):
        loss = (torch.arange(12) * values).sum() + values.square().mean()  # couples the samples
        results.append((values.detach(), *torch.autograd.grad(loss, z)))
    for sloped, whole in zip(results[1], results[0], strict=True):
        assert_close(sloped, whole, tolerance=1e-12)


@pytest.mark.parametrize("bound", ["dv", pytest.param("infonce", marks=pytest.mark.exhaustive)])
def test_less_than_two_megabytes_are_saved_for_backward(bound):
    """256 samples and 2048 units: 134 MB of local features, 17 MB of scores."""
    estimate = estimator_of(bound, 256, 2048, size=32, dtype=torch.float32)
    logits = torch.randn(256, 5, requires_grad=True)
    (whole,), (sloped,) = estimate([logits]), sloped_estimates(estimate, [logits])
    assert saved_bytes(whole) > 150e6
    assert saved_bytes(sloped) < 2e6


def saved_bytes(value: Tensor) -> int:
    """Returns the bytes of distinct storages that the graph of a value holds for backward."""
    storages: dict[int, int] = {}
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for tensor in (*saved, *getattr(node, "saved_tensors", ())):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_without_gradient_there_are_no_slopes():
    estimate = estimator_of("infonce", 4, 8)
    logits = torch.randn(4, 5, dtype=torch.float64)
    assert not sloped_estimates(estimate, [logits])[0].requires_grad
    with torch.no_grad():
        assert not sloped_estimates(estimate, [logits.requires_grad_()])[0].requires_grad


def test_each_output_has_a_slope_if_it_has_a_gradient():
    estimate = estimator_of("infonce", 4, 8)
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    fixed = z.detach()
    several = sloped_estimates(estimate, [z, fixed, 2 * z])
    assert [values.requires_grad for values in several] == [True, False, True]
    for values, whole in zip(several, estimate([z, fixed, 2 * z]), strict=True):
        assert_close(values, whole, tolerance=1e-12)
    (expected,) = torch.autograd.grad(sum(v.square().sum() for v in estimate([z, 2 * z])), z)
    (computed,) = torch.autograd.grad(several[0].square().sum() + several[2].square().sum(), z)
    assert_close(computed, expected, tolerance=1e-12)
