"""Naive schedule: the result of the released form, with the operations of the released code."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raymi.benchmarks.arms import (
    AT,
    JOINT,
    RELEASED,
    STAGED,
    arm_config,
    step_call,
    trainee,
    with_settings,
)
from raymi.commands.bench.command import planned
from raymi.commands.bench.options import requested
from raymi.models.running_statistics import running_statistics_frozen
from studies.released_schedule.naive import NaiveSchedule
from studies.released_schedule.steps import main, naive_schedule, naive_step, naive_trainee

CPU = torch.device("cpu")
TINY = ("model.name=small-cnn", "mi.hidden=16", "mi.base_width=4", "image_size=16", "batch_size=12")


def multiply_adds(step: Callable[[], object], num: int) -> float:
    """Counts multiply-adds of convolutions and matrix products, per sample."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 2 / num


def test_naive_step_has_the_operations_of_the_released_code() -> None:
    """ResNet-18, H = 2048, 32x32, without the attack.

    Naive: seven forwards, five with backward; four local and four global encodings with backward.
    Released form: two forwards with backward, two local encodings, and four global ones with the
    input's gradient.
    """
    config = with_settings(planned(requested([])).config, {"optim.batch_size": 2})
    state = trainee(arm_config(config, STAGED), CPU).state
    assert state.estimators is not None
    assert state.estimators.natural is not None
    natural, x, z = state.estimators.natural, torch.rand(2, 3, 32, 32), torch.rand(2, 10, 1, 1)
    model = multiply_adds(lambda: state.model(x), 2)
    local = multiply_adds(lambda: natural.local(x), 2)
    global_ = multiply_adds(lambda: natural.global_(z), 2)
    assert model == pytest.approx(0.555e9, rel=0.01)
    assert local == pytest.approx(0.311e9, rel=0.01)
    naive = multiply_adds(naive_step(config, CPU, crafting=False), 2)
    needed = multiply_adds(step_call(config, RELEASED, CPU, crafting=False), 2)
    assert naive == pytest.approx((7 + 2 * 5) * model + 4 * 3 * (local + global_), rel=0.01)
    assert needed == pytest.approx(2 * 3 * model + 2 * local + 4 * 2 * global_, rel=0.01)
    assert naive / needed == pytest.approx(3.3, rel=0.1)


def test_at_has_fewest_operations_and_learning_estimators_costs_more_than_frozen_ones() -> None:
    config = planned(requested(TINY)).config
    counts = {
        arm: multiply_adds(step_call(config, arm, CPU, crafting=False), 12)
        for arm in (AT, STAGED, JOINT, RELEASED)
    }
    assert counts[AT] < counts[STAGED] < counts[RELEASED]
    assert counts[STAGED] < counts[JOINT]


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_naive_step_equals_a_released_staged_step(float64: None) -> None:
    """Compares loss, gradients, weights and running statistics at the same x_adv."""
    config = arm_config(planned(requested(TINY)).config, RELEASED, {"scaling.channels_last": False})
    made = trainee(config, CPU)
    state, batch = made.state, next(made.batches)
    x = batch.x.double()
    assert state.estimators is not None
    assert state.classifier is not None
    model, estimators = deepcopy(state.model), deepcopy(state.estimators)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.lr, momentum=0.9)
    optimizer.param_groups[0]["weight_decay"] = config.optim.weight_decay
    naive = NaiveSchedule(model, estimators, optimizer, config.attack, state.autocast)

    generator = torch.Generator().manual_seed(1)
    x_adv = (x + 0.5 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    with running_statistics_frozen(model), torch.no_grad():
        y = model(x).softmax(dim=0).argmax(dim=1)  # all natural images are classified right
        wrong = model(x_adv).softmax(dim=0).argmax(dim=1) != y
    assert 3 <= wrong.sum() <= len(x)

    step, shard = state.training_step, batch.shard
    logits, logits_adv = state.classifier.task(x, x_adv, shard)
    loss_mi, _ = step.mi(x, x_adv, logits, logits_adv, y, shard)
    loss, _ = step.objective(
        step.loss(logits, logits_adv, y, shard), loss_mi, [logits, logits_adv], shard
    )
    state.classifier.backward(loss)
    assert abs(loss_mi) > 1e-6
    expected = naive.step_on(x, x_adv, y)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-9, atol=0)
    for ours, theirs in zip(state.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-10)
    state.classifier.update()
    for name, value in state.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-7, atol=1e-10)
    for name, value in state.estimators.state_dict().items():
        assert value.equal(estimators.state_dict()[name])


def test_naive_attack_is_pgd_within_the_ball(float64: None) -> None:
    config = planned(requested(TINY)).config
    made = naive_trainee(config, CPU)
    state, batch = made.state, next(made.batches)
    x = batch.x.double()
    naive = naive_schedule(made, config)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    x_adv = naive.craft(x, batch.y)
    assert (x_adv - x).abs().max() <= config.attack.eps + 1e-12
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert state.model.training
    assert all(value.equal(before[name]) for name, value in state.model.state_dict().items())
    state.model.eval()
    raised = torch.nn.functional.cross_entropy(state.model(x_adv), batch.y)
    assert raised > torch.nn.functional.cross_entropy(state.model(x), batch.y)


def test_the_study_prints_both_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "attack.steps=1", "rounds=2", "use_gpu=false", "threads=1"]) == 0
    header, _, whole, outside = capsys.readouterr().out.splitlines()
    assert "naive / released" in header
    assert whole.startswith("| whole step | ")
    assert outside.startswith("| outside of crafting | ")
