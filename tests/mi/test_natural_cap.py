"""`mi.natural_cap`: natural MI above log K has no gradient; below, nothing changes."""

from __future__ import annotations

import math

import pytest
import torch

from raymi.collectives import Shard
from raymi.mi.estimation import EstimatorTask
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.forms.estimated import EstimatedMI
from raymi.mi.settings import MIConfig

NUM, CLASSES = 24, 2
BATCH = Shard.alone(NUM)


@pytest.fixture(scope="module")
def outputs():
    """Images, and logits that identify each of them, as no label of two classes can."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(NUM, 3, 8, 8, generator=generator)
    z = 4 * torch.randn(NUM, CLASSES, generator=generator)
    return x, x + 0.1 * torch.randn(x.shape, generator=generator), z


@pytest.fixture(scope="module")
def estimators(outputs):
    """Natural estimator that has learnt the pairs by heart."""
    x, x_adv, z = outputs
    torch.manual_seed(0)
    natural = LocalDIM(CLASSES, 8, hidden=32, base_width=8, depth=1)
    both = MIEstimators(natural, None)
    adam = torch.optim.Adam(both.parameters(), lr=1e-2)
    task = EstimatorTask(both, MIConfig(adversarial=False))
    for _ in range(60):
        loss, _ = task(x, x_adv, z, z, torch.zeros(NUM, dtype=torch.int64), BATCH)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return both


def loss_and_gradient(estimators, outputs, z, **settings):
    x, x_adv, _ = outputs
    z = z.clone().requires_grad_()
    term = EstimatedMI(estimators, MIConfig(adversarial=False, **settings))
    loss, metrics = term(x, x_adv, z, z, torch.zeros(NUM, dtype=torch.int64), BATCH)
    (grad,) = torch.autograd.grad(loss, z)
    return loss.item(), grad, metrics["mi/natural_of_adversarial"].item()


@pytest.mark.parametrize("bound", ["infonce", "dv"])
def test_natural_mi_above_what_a_label_holds_stops_counting(bound, estimators, outputs):
    free = loss_and_gradient(estimators, outputs, outputs[2], bound=bound)
    capped = loss_and_gradient(estimators, outputs, outputs[2], bound=bound, natural_cap=True)
    assert free[0] < -math.log(CLASSES)
    assert free[1].any()
    assert capped[0] == pytest.approx(-math.log(CLASSES))
    assert not capped[1].any()
    assert capped[2] == free[2] > math.log(CLASSES), "the metric is not capped"


def test_natural_mi_below_the_cap_counts_in_full(estimators, outputs):
    z = 0.2 * outputs[2].flip(0) + outputs[2].roll(1, 0)  # of other images
    free = loss_and_gradient(estimators, outputs, z)
    capped = loss_and_gradient(estimators, outputs, z, natural_cap=True)
    assert -math.log(CLASSES) < free[0]
    assert capped[0] == free[0]
    assert torch.equal(capped[1], free[1])
    assert free[1].any()
