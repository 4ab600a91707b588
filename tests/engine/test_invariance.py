"""The mathematics of a step does not depend on how many workers share the global batch."""

from __future__ import annotations

import pytest
import torch
from gloo import run_ranks
from tiny_runs import steps_in_float64

NUM_STEPS = 10
METHODS = {
    "at": {"mi.weight": 0},
    "trades": {"mi.weight": 0, "loss.base": "trades"},
    "mart": {"mi.weight": 0, "loss.base": "mart"},
    "namid-bounded": {},
    "namid-paper": {"mi.form": "paper", "mi.hidden": 16},
    "namid-dv-on-trades": {"mi.bound": "dv", "mi.clamp": False, "loss.base": "trades"},
    "namid-contrast-on-mart": {"mi.objective": "contrast", "loss.base": "mart"},
    # 182 images in steps of 60: the last has 2, so that a third worker has none
    "namid-empty-worker": {"data.limit": 202, "optim.batch_size": 60, "optim.epochs": 3},
}


def steps_of_all_methods(rank, world_size):
    return {k: steps_in_float64(rank, world_size, v, NUM_STEPS) for k, v in METHODS.items()}


@pytest.fixture(scope="module")
def alone():
    return steps_of_all_methods(0, 1)


@pytest.fixture(scope="module", params=[2, 3], ids=["2-workers", "3-workers"])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(steps_of_all_methods, request.param, tmp_path=folder, timeout=400)


@pytest.mark.parametrize("method", METHODS)
def test_losses_of_ten_steps_are_those_of_one_process(ranks, alone, method):
    expected, _ = alone[method]
    assert len(expected) == NUM_STEPS
    for rank in ranks:
        history, _ = rank[method]
        for step, (mine, one) in enumerate(zip(history, expected, strict=True)):
            assert mine == pytest.approx(one, rel=1e-9, abs=1e-12), f"step {step}"


@pytest.mark.parametrize("method", METHODS)
def test_weights_after_ten_steps_are_those_of_one_process(ranks, alone, method):
    _, expected = alone[method]
    for rank in ranks:
        _, weights = rank[method]
        assert weights.keys() == expected.keys()
        for name, one in expected.items():
            error = torch.linalg.vector_norm((weights[name] - one).double())
            # a bias that no score depends on holds rounding alone: nothing to be relative to
            assert error <= 1e-9 * max(torch.linalg.vector_norm(one.double()), 1), name


def test_the_methods_differ(alone):
    """What agrees above is not the same for all of them."""
    last = {method: history[-1]["loss"] for method, (history, _) in alone.items()}
    assert len({round(loss, 6) for loss in last.values()}) == len(METHODS)
