"""Plan of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from raymi.config import Config
from raymi.hardware import available_cores

PARTS = {
    "phases": "time of a step by phase",
    "profile": "the operations that take most of a step's time",
    "ratios": "whole steps against each other: AT, NAMID, the released schedule",
    "crafting": "PGD against torchattacks.PGD",
    "scaling": "one worker against N, plain torch.distributed",
    "ray": "N workers under Ray Train against N under plain torch.distributed",
    "memory": "peak memory of a step",
}


@dataclass(frozen=True)
class Plan:
    """A configuration, the parts to measure on it, and the size of the measurement.

    Attributes:
        config: measured configuration.
        parts: names of the parts.
        device: where steps are measured.
        rounds: measurements in turn, in one process.
        runs: runs in turn of each kind that needs fresh processes.
        loop_steps: measured steps of such a run.
        threads: threads of this process.
        workers: N of the parts about N workers.
        json: file for all numbers; None: none.
    """

    config: Config
    parts: tuple[str, ...]
    device: torch.device
    rounds: int
    runs: int
    loop_steps: int
    threads: int
    workers: int
    json: Path | None


def free_slots(device: torch.device) -> int:
    """Returns the number of workers that this machine can run: its GPUs, or its cores."""
    return torch.cuda.device_count() if device.type == "cuda" else available_cores()
