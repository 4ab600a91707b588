"""Plan of a benchmark, and the shape of its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymi.config import Config
from raymi.hardware import available_cores, available_gpus

if TYPE_CHECKING:
    import torch

PARTS = {
    "phases": "time of a step by phase",
    "profile": "the operations that take most of a step's time",
    "ratios": "whole steps against each other: AT, NAMID, its released form",
    "crafting": "PGD against torchattacks.PGD",
    "scaling": "one worker against N, plain torch.distributed",
    "memory": "peak memory of a step",
}


_SIZES = {"digits": 8, "mnist": 28, "fashion-mnist": 28, "tiny-imagenet": 64}
_CLASSES = {"cifar100": 100, "tiny-imagenet": 200}


def image_size(config: Config) -> int:
    """Returns the side in pixels: `data.image_size`, else the data set's, else 32."""
    return config.data.image_size or _SIZES.get(config.data.name, 32)


def num_classes(config: Config) -> int:
    """Returns the number of classes of the data set; 10 if only its files have it."""
    return _CLASSES.get(config.data.name, 10)


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
    return len(available_gpus()) if device.type == "cuda" else available_cores()
