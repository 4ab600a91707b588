"""Parts of a learner's state that a checkpoint restores."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from raymi.config import OptimConfig
from raymi.engine.learner import Learner
from raymi.engine.schedules import build_schedule

TOTAL = 40
BEFORE = OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.01, schedule="multistep")
AFTER = OptimConfig(lr=0.02, momentum=0.5, weight_decay=0.2, schedule="cosine")


def begun(weight, optim):
    task = nn.ParameterList([nn.Parameter(weight.clone())])
    sgd = torch.optim.SGD(
        task.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
    )
    return Learner(task, sgd, build_schedule(sgd, optim, TOTAL))


def stepped(learner, steps):
    (weight,) = learner.task.parameters()
    for _ in range(steps):
        learner.step((weight**4).sum())
    return weight.detach().clone()


def handed_on(learner, optim):
    (weight,) = learner.task.parameters()
    heir = begun(weight.detach(), optim)
    heir.load_state_dict(copy.deepcopy(learner.state_dict()))
    return heir


@pytest.mark.parametrize("schedule", ["multistep", "cosine", "onecycle", "constant"])
@pytest.mark.parametrize("steps", [0, 1, 31, 39])
def test_with_the_same_settings_nothing_changes(schedule, steps):
    optim = BEFORE.model_copy(update={"schedule": schedule})
    learner = begun(torch.linspace(-0.8, 0.8, 7), optim)
    stepped(learner, steps)
    heir = handed_on(learner, optim)
    assert (
        heir.state_dict()["optimizer"]["param_groups"]
        == (learner.state_dict()["optimizer"]["param_groups"])
    )
    assert heir.schedule.get_last_lr() == learner.schedule.get_last_lr()
    assert torch.equal(stepped(heir, TOTAL - steps), stepped(learner, TOTAL - steps))


def test_other_settings_count_from_the_next_step():
    learner = begun(torch.linspace(-0.8, 0.8, 7), BEFORE)
    weight = stepped(learner, 10)
    velocity = learner.optimizer.state[next(learner.task.parameters())]["momentum_buffer"].clone()
    heir = handed_on(learner, AFTER)
    for step in range(10, 13):  # SGD as it is written in books
        lr = 0.02 * (1 + math.cos(math.pi * step / TOTAL)) / 2
        velocity = 0.5 * velocity + 4 * weight**3 + 0.2 * weight
        weight = weight - lr * velocity
    torch.testing.assert_close(stepped(heir, 3), weight, rtol=0, atol=1e-6)
    assert not torch.allclose(stepped(learner, 3), weight, rtol=0, atol=1e-4)


def test_adam_keeps_its_moments_and_takes_another_rate():
    weight = torch.linspace(-0.8, 0.8, 7)

    def adam(weight, lr):
        task = nn.ParameterList([nn.Parameter(weight.clone())])
        return Learner(task, torch.optim.Adam(task.parameters(), lr=lr))

    learner = adam(weight, 1e-2)
    weight = stepped(learner, 5)
    heir = adam(weight, 1e-3)
    heir.load_state_dict(copy.deepcopy(learner.state_dict()))
    slow, fast = stepped(heir, 1) - weight, stepped(learner, 1) - weight
    torch.testing.assert_close(10 * slow, fast, rtol=1e-3, atol=1e-7)


def test_restoring_a_schedule_gives_no_warning():
    learner = begun(torch.ones(2), BEFORE)
    stepped(learner, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepped(handed_on(learner, AFTER), 2)
