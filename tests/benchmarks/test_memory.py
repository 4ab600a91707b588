"""Peak memory of steps."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from raymi.benchmarks import memory
from raymi.benchmarks.arms import AT, JOINT
from raymi.commands.bench.command import planned
from raymi.commands.bench.options import requested


def test_memory_shows_which_steps_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which AT fits, and no other step, without a GPU."""

    def peak(plan: object, arm: str) -> dict[str, Any]:
        why = "OutOfMemoryError: no"
        return {"fits": arm == AT, "peak": 3 * 2**30, "before": 0, "why": why}

    monkeypatch.setattr(memory, "peak_in_process", peak)
    plan = replace(planned(requested(["use_gpu=false"])), device=torch.device("cuda"))
    rows = {row[0]: row[1:] for row in memory.measure_memory(plan).rows}
    assert rows[AT] == ["3.00", "3.00", "1.00"]
    assert rows[JOINT] == ["OutOfMemoryError: no", "", ""]


def test_peak_resident_memory_includes_a_new_block() -> None:
    """Peak memory of a fresh process: in this one, an earlier test may have used more."""
    code = """
from raymi.benchmarks.memory import peak_resident
import torch
before = peak_resident()
block = torch.ones(2**26)  # 256 MiB
print(peak_resident() - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 250 * 2**20 < int(out.stdout) < 300 * 2**20
