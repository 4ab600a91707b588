"""The comparison of two versions sees a single bit."""

from __future__ import annotations

import math

import pytest
import torch

from studies.same_bits.compare import differences

ONE = {"weights": [torch.tensor([0.0, 1.0, math.nan])], "metrics": {"loss": math.nan, "step": 1}}


def changed(**values: object) -> dict[str, object]:
    return {**ONE, **values}


def test_equal_results_have_no_difference() -> None:
    assert not list(differences(ONE, {**ONE, "weights": [ONE["weights"][0].clone()]}))


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (changed(weights=[torch.tensor([-0.0, 1.0, math.nan])]), ["weights[0]"]),
        (changed(weights=[torch.tensor([0.0, 1.0, math.nan]).double()]), ["weights[0]"]),
        (changed(weights=[]), ["weights"]),
        (changed(metrics={"loss": math.nan}), ["metrics.step"]),
        (changed(more=1), ["more"]),
    ],
)
def test_a_changed_bit_type_or_name_is_a_difference(
    other: dict[str, object], names: list[str]
) -> None:
    assert list(differences(ONE, other)) == names


def test_the_next_float_is_a_difference() -> None:
    x = torch.tensor(1.0)
    assert list(differences(x, torch.nextafter(x, x + 1), "x")) == ["x"]
