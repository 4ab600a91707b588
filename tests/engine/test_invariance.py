"""The mathematics of a step does not depend on how many workers share the global batch."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from gloo import run_ranks
from tiny_runs import steps_in_float64, tiny_config, tiny_state

pytestmark = pytest.mark.slow

FEW_STEPS, MANY_STEPS = 6, 20
UNEVEN = {"data.limit": 81, "optim.batch_size": 35, "optim.epochs": 7}
"""72 images in steps of 35, 35 and 2: no step has equal shares on 2 workers and on 4, and the last
leaves workers beyond the second without any. The few steps are two such epochs."""

TRADES, MART = {"loss.base": "trades"}, {"loss.base": "mart"}
AVERAGED_AT_WORST_WEIGHTS = {"optim.awp": 0.02, "optim.awp_warmup": 0, "optim.ema": 0.9}
NO_ESTIMATORS = {"mi.hidden": None, "mi.base_width": None, "mi.depth": None}
STAGED = {"mi.schedule": "staged"}
METHODS: dict[str, dict[str, Any]] = {
    "at": {"mi.weight": 0},
    "trades": {"mi.weight": 0, **TRADES},
    "mart-awp-ema": {"mi.weight": 0, **MART, **AVERAGED_AT_WORST_WEIGHTS},
    "namid": {},
    "namid-paper": {"mi.form": "paper", "mi.hidden": 16},
    "namid-released": {"mi.form": "released", "mi.hidden": 16},
    "namid-dv-on-trades": {"mi.bound": "dv", "mi.clamp": False, **TRADES},
    "namid-contrast-on-mart": {"mi.objective": "contrast", **MART},
    "namid-awp-ema": AVERAGED_AT_WORST_WEIGHTS,
    "namid-other-classes": {"mi.negative_classes": "other", "mi.natural_cap": True},
    "teacher-on-trades": {**NO_ESTIMATORS, "mi.form": "teacher", **TRADES},
    "adr-awp-ema": {**NO_ESTIMATORS, "mi.form": "adr", **AVERAGED_AT_WORST_WEIGHTS},
    "namid-cutmix": {"data.mix_images": "cutmix"},
    "js-on-mart": {**NO_ESTIMATORS, "mi.form": "js", **MART},
    "staged-pretraining": {**STAGED, **AVERAGED_AT_WORST_WEIGHTS},
    "staged-estimators": STAGED,
    "staged-classifier": STAGED,
    "staged-classifier-dv-on-trades": {**STAGED, "mi.bound": "dv", **TRADES},
    "staged-classifier-awp-ema-on-mart": {**STAGED, **MART, **AVERAGED_AT_WORST_WEIGHTS},
}
WITH_EMPTY_WORKER = ["trades", "namid", "namid-other-classes", "adr-awp-ema", "namid-cutmix",
                     "staged-classifier"]  # fmt: skip
"""Methods that three workers run; four run all of them in the exhaustive tests."""


def first_steps(rank, world_size, methods, num_steps):
    phases = {"staged-pretraining": "pretraining", "staged-estimators": "estimators"}
    return {
        name: steps_in_float64(
            rank, world_size, {**UNEVEN, **METHODS[name]}, num_steps, phases.get(name, "classifier")
        )
        for name in methods
    }


def relative_error(mine, one, nothing):
    """|mine - one| / |one|; 0 where both are shorter than `nothing`."""
    mine, one = mine.double(), one.double()
    norms = torch.linalg.vector_norm(mine), torch.linalg.vector_norm(one)
    if max(norms) < nothing:
        return 0.0
    return (torch.linalg.vector_norm(mine - one) / norms[1]).item()


@pytest.fixture(scope="module")
def alone():
    """Results of one process by method, computed once for each number of steps."""
    return functools.cache(lambda num_steps: first_steps(0, 1, METHODS, num_steps))


@pytest.fixture(scope="module")
def on_workers(tmp_path_factory):
    """Results of each rank by method, computed once for each number of workers and of steps."""

    @functools.cache
    def results(workers, num_steps):
        methods = WITH_EMPTY_WORKER if workers == 3 else list(METHODS)
        folder = tmp_path_factory.mktemp("ranks")
        return run_ranks(first_steps, workers, methods, num_steps, tmp_path=folder)

    return results


def case(workers, method, num_steps, *marks):
    return pytest.param(workers, method, num_steps, id=f"{workers}-{method}", marks=marks)


CASES = [
    *(case(2, method, FEW_STEPS) for method in METHODS),
    *(case(3, method, FEW_STEPS) for method in WITH_EMPTY_WORKER),
    *(case(4, method, MANY_STEPS, pytest.mark.exhaustive) for method in METHODS),
]


@pytest.mark.parametrize(("workers", "method", "num_steps"), CASES)
def test_losses_do_not_depend_on_the_number_of_workers(
    workers, method, num_steps, on_workers, alone
):
    """Rounding grows to at most 1e-12 here: the sign in PGD turns for no pixel."""
    expected, _ = alone(num_steps)[method]
    assert len(expected) == num_steps
    for rank in on_workers(workers, num_steps):
        history, _ = rank[method]
        for step, (mine, one) in enumerate(zip(history, expected, strict=True)):
            assert mine == pytest.approx(one, rel=1e-9, abs=0), f"step {step}"


@pytest.mark.parametrize(("workers", "method", "num_steps"), CASES)
def test_weights_do_not_depend_on_the_number_of_workers(
    workers, method, num_steps, on_workers, alone
):
    _, expected = alone(num_steps)[method]
    for rank in on_workers(workers, num_steps):
        _, weights = rank[method]
        assert weights.keys() == expected.keys()
        for name, one in expected.items():
            # a bias that no score depends on holds rounding alone
            assert relative_error(weights[name], one, nothing=1e-8) <= 1e-9, name


def test_the_methods_differ(alone):
    """The tests above compare as many different trainings as there are methods."""
    last = {name: history[-1] for name, (history, _) in alone(FEW_STEPS).items()}
    losses = {m.get("loss", m.get("loss_estimators")) for m in last.values()}
    assert len({round(loss, 6) for loss in losses}) == len(METHODS)


IN_FLOAT32: dict[str, dict[str, Any]] = {
    "at": {"mi.weight": 0},
    "trades": {"mi.weight": 0, **TRADES},
    "mart": {"mi.weight": 0, **MART},
    "namid": {},
    "namid-on-trades": TRADES,
    "namid-on-mart": MART,
    "namid-dv": {"mi.bound": "dv"},
}


def first_step(rank, world_size):
    """Loss and metrics of the first step of each method, and its gradients, in float32.

    The random start is the only noise. Estimators learn next to nothing before the
    classifier's loss is formed: Adam's first move is lr times the sign of the gradient, which
    rounding turns where the gradient is next to nothing.
    """
    results = {}
    for name, settings in IN_FLOAT32.items():
        config = tiny_config({"attack.steps": 0, "mi.estimator_lr": 1e-12, **settings})
        state, loader = tiny_state(config)
        batch = next(loader.epoch(0))
        metrics = state.step(batch)
        losses = {k: (state.group.sum(v) / world_size).item() for k, v in metrics.items()}
        modules = {"model": state.model, "estimators": state.estimators}
        grads = {
            f"{module}.{k}": p.grad.clone()
            for module, owner in modules.items()
            if owner is not None
            for k, p in owner.named_parameters()
        }
        results[name] = losses, grads
    return results


@pytest.mark.parametrize("workers", [3, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_first_losses_and_gradients_in_float32_equal_those_of_one_process(workers, tmp_path):
    alone = first_step(0, 1)
    for rank in run_ranks(first_step, workers, tmp_path=tmp_path):
        for method, (expected, expected_grads) in alone.items():
            losses, grads = rank[method]
            assert losses == pytest.approx(expected, rel=1e-5, abs=0), method
            assert grads.keys() == expected_grads.keys()
            assert any(name.startswith("estimators") for name in grads) == ("namid" in method)
            for name, one in expected_grads.items():
                # of a bias before a BatchNorm it is rounding alone
                assert relative_error(grads[name], one, nothing=1e-6) <= 1e-5, (method, name)
