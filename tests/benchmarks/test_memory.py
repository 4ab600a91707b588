"""Counting saved bytes, and finding the largest batch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from raymi.benchmarks import largest_batch, memory
from raymi.benchmarks.arms import AT, JOINT
from raymi.benchmarks.largest_batch import PRECISION, largest_that_fits, linear_limit
from raymi.benchmarks.plan import Plan, planned
from raymi.benchmarks.saved import bytes_held, saved_by_naive, saved_by_term

CPU = torch.device("cpu")


@pytest.mark.parametrize("capacity", [2, 3, 7, 64, 100, 1000, 4097])
@pytest.mark.parametrize("guess", [2, 50, 900, 20_000])
def test_the_largest_batch_that_fits_is_found_from_any_guess(capacity: int, guess: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= capacity

    found = largest_that_fits(fits, guess)
    assert found <= capacity <= max(found, PRECISION * found)
    assert len(tried) < 25


def test_a_good_guess_needs_few_trials_and_nothing_may_fit() -> None:
    tried: list[int] = []
    largest_that_fits(lambda b: tried.append(b) or b <= 1000, 980)
    assert len(tried) <= 4
    assert largest_that_fits(lambda b: False, 64) == 0


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan for a GPU on which 900 images of AT fit, 700 of the others, without one."""

    def peak(plan: Plan, arm: str, batch: int, limit: float | None = None) -> dict[str, Any]:
        fits = batch <= (900 if arm == AT else 700)
        return {"fits": fits, "peak": batch * 2**20, "before": 0, "why": "OutOfMemoryError: no"}

    monkeypatch.setattr(largest_batch, "peak_in_process", peak)
    monkeypatch.setattr(memory, "peak_in_process", peak)
    monkeypatch.setattr(largest_batch, "device_memory", lambda device: 0.5)
    return replace(planned(["use_gpu=false", "batch_size=800"]), device=torch.device("cuda"))


def test_on_a_gpu_batches_are_tried_out_and_a_refusal_is_told(small_gpu: Plan) -> None:
    section = largest_batch.measure_largest_batch(small_gpu)
    images = section.data["images"]
    assert images[AT] <= 900 <= PRECISION * images[AT]
    assert images[JOINT] <= 700 <= PRECISION * images[JOINT]
    assert section.data["refused"][AT] == "OutOfMemoryError: no"


def test_an_arm_that_does_not_fit_is_said_beside_those_that_do(small_gpu: Plan) -> None:
    rows = {row[0]: row[1:] for row in memory.measure_memory(small_gpu).rows}
    assert rows[AT] == ["0.78", "0.78", "1.00"]
    assert rows[JOINT] == ["OutOfMemoryError: no", "", ""]


def test_a_line_through_two_batches_reaches_the_memory() -> None:
    assert linear_limit((32, 64), (100 + 32.0, 100 + 64.0), 100 + 1000.0) == 1000
    assert linear_limit((32, 64), (132.0, 164.0), 50.0) == 0


def test_held_bytes_are_distinct_storages_without_the_owners_own() -> None:
    layer = nn.Linear(8, 8)
    x = torch.randn(4, 8, requires_grad=True)
    out = layer(x)  # holds x, and the weight, which is its own
    out = out * out  # holds the product's input twice, once is enough
    assert bytes_held([out], layer) == 4 * 4 * 8 + 4 * 4 * 8
    assert bytes_held([out], nn.Module()) > bytes_held([out], layer)
    out.sum().backward()  # counting leaves the graph as it is
    assert x.grad is not None


def test_the_naive_schedule_saves_more_than_the_released_form_computed_once() -> None:
    words = ["mi.hidden=16", "mi.base_width=4", "image_size=16"]
    config, batch, small = planned(words).config, 8, 4
    released = {"mi.form": "released", "mi.bound": "dv-released"}
    needed = saved_by_term(config, released, CPU, batch)
    naive = saved_by_naive(config, CPU, batch)
    assert 0 < needed < naive / 10
    assert 0 < saved_by_term(config, {"mi.form": "bounded"}, CPU, small) < needed


def test_the_largest_resident_memory_follows_what_is_used() -> None:
    """In a process of its own: here, another test may have used more before."""
    code = """
from raymi.benchmarks.memory import peak_resident
import torch
before = peak_resident()
block = torch.ones(2**26)  # 256 MiB
print(peak_resident() - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 250 * 2**20 < int(out.stdout) < 300 * 2**20
