"""Learning rates over a run, and through a checkpoint."""

from __future__ import annotations

import io

import pytest
import torch

from raymi.config import OptimConfig
from raymi.engine.schedules import build_schedule

TOTAL = 40


def rates(schedule, resumed_at=None, total=TOTAL, **settings):
    """The learning rate of each step of a run, continued from a checkpoint on the way."""
    optim = OptimConfig(schedule=schedule, lr=0.1, **settings)

    def begin():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.lr)
        return optimizer, build_schedule(optimizer, optim, total)

    optimizer, lr = begin()
    seen = []
    for step in range(total):
        if step == resumed_at:
            buffer = io.BytesIO()
            torch.save([optimizer.state_dict(), lr.state_dict()], buffer)
            buffer.seek(0)
            optimizer, lr = begin()
            for thing, state in zip(
                (optimizer, lr), torch.load(buffer, weights_only=True), strict=True
            ):
                thing.load_state_dict(state)
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lr.step()
    return seen


def test_multistep_divides_by_10_at_its_milestones():
    seen = rates("multistep", milestones=(0.5, 0.75))
    assert seen == pytest.approx([0.1] * 20 + [0.01] * 10 + [0.001] * 10)


def test_cosine_falls_from_the_peak_to_nearly_zero():
    seen = rates("cosine")
    assert seen[0] == 0.1
    assert seen == sorted(seen, reverse=True)
    assert seen[20] == pytest.approx(0.05)
    assert seen[-1] < 0.001


def test_onecycle_peaks_after_the_warmup_and_ends_near_zero():
    seen = rates("onecycle", warmup=0.25)
    assert seen[0] == pytest.approx(0.01)
    assert abs(seen.index(max(seen)) - 0.25 * TOTAL) <= 1
    assert max(seen) == pytest.approx(0.1, rel=0.1)
    assert seen[-1] < 0.01


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 9])
def test_onecycle_works_for_the_shortest_runs(total, warmup):
    seen = rates("onecycle", total=total, warmup=warmup)
    assert all(0 <= rate <= 0.1 for rate in seen)
    assert seen[0] >= 0.01


def test_a_warm_up_rises_linearly_to_the_peak():
    rising = [0.02, 0.04, 0.06, 0.08]
    assert rates("constant", warmup=0.1) == pytest.approx([*rising, *[0.1] * 36])
    steps = rates("multistep", warmup=0.1, milestones=(0.5, 0.75))
    assert steps == pytest.approx([*rising, *[0.1] * 16, *[0.01] * 10, *[0.001] * 10])
    cosine = rates("cosine", warmup=0.1)
    assert cosine == pytest.approx([*rising, *rates("cosine", total=36)])


def test_constant_is_constant():
    assert rates("constant") == [0.1] * TOTAL


@pytest.mark.parametrize("schedule", ["multistep", "cosine", "onecycle", "constant"])
@pytest.mark.parametrize("warmup", [None, 0.1])
@pytest.mark.parametrize("step", [1, 29, 39])
def test_a_continued_schedule_is_the_uninterrupted_one(schedule, step, warmup):
    assert rates(schedule, resumed_at=step, warmup=warmup) == rates(schedule, warmup=warmup)
