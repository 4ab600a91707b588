"""Weights and temperatures that follow a schedule over a phase."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tiny_runs import same, tiny_config, tiny_run, tiny_state

from raymi.fields import value_at
from raymi.losses.settings import LossConfig
from raymi.mi.settings import MIConfig
from raymi.runs.checkpoint import load_checkpoint
from raymi.runs.run_folder import RunFolder


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3.0, [3.0, 3.0, 3.0]),
        ("linear:0:5", [0.0, 2.5, 5.0]),
        ("linear:1:1/2", [1.0, 0.75, 0.5]),
        ("cosine:0.75:0.25", [0.75, 0.5, 0.25]),
    ],
)
def test_a_schedule_goes_from_its_first_to_its_last_value(value, expected):
    assert [value_at(value, progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(expected)
    assert abs(value_at("cosine:0:1", 0.1)) < value_at("linear:0:1", 0.1)


@pytest.mark.parametrize(
    "value", ["linear:0", "linear:0:5:6", "step:0:5", "linear:0:-1", "linear:a:b", "2..8", True]
)
def test_other_texts_are_refused(value):
    with pytest.raises(ValidationError, match="linear:FIRST:LAST"):
        MIConfig(weight=value)


def test_a_temperature_stays_above_zero():
    with pytest.raises(ValidationError, match="number > 0"):
        MIConfig(temperature="linear:1:0")
    assert MIConfig(temperature="linear:1:0.1").temperature == "linear:1:0.1"
    assert LossConfig(base="trades", beta="linear:0:6").beta == "linear:0:6"


def weights_of_steps(settings):
    """Weights of the MI loss in both epochs of a run of two, five steps each."""
    state, loader = tiny_state(tiny_config(settings))
    found = []
    for epoch in range(2):
        for step, batch in enumerate(loader.epoch(epoch)):
            state.position.epoch, state.position.step = epoch, step
            found.append(state.step(batch)["mi/weight"].item())
    return found, state


def test_the_weight_of_a_step_follows_its_position():
    found, state = weights_of_steps({"mi.weight": "linear:0:5", "mi.temperature": "linear:1:0.5"})
    assert found == pytest.approx([5 * step / 10 for step in range(10)])
    assert state.estimators.natural.temperature == pytest.approx(0.55)


def test_a_schedule_between_equal_values_changes_no_bit():
    results = [
        weights_of_steps({"mi.balance": balance, "mi.temperature": temperature})
        for balance, temperature in ((0.2, 0.1), ("linear:0.2:0.2", "cosine:0.1:0.1"))
    ]
    assert results[0][0] == results[1][0]
    one, other = (state.model.state_dict() for _, state in results)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_stopped_run_follows_the_schedule(tmp_path):
    settings = {
        "mi.weight": "linear:0:5", "mi.temperature": "cosine:1:0.1", "loss.base": "trades",
        "loss.beta": "linear:0:6",
    }  # fmt: skip
    found = []
    for name, stops in (("whole", []), ("stopped", [2, 5])):
        assert tiny_run(0, 1, tmp_path / name, settings, stops).finished
        found.append(load_checkpoint(RunFolder(tmp_path / name).checkpoints))
    for part in ("model", "estimators", "best"):
        assert same(found[0][part], found[1][part]), part
