"""Timed search, called in a process of `run_processes`."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from raymi.collectives import Collectives
from raymi.tuning.sweep_folder import Definition
from studies.search.one_search import search


def timed_search(
    _: Collectives,
    device: torch.device,
    definition: Definition,
    budget: int,
    training_seed: int,
) -> dict[str, Any]:
    """Returns the trials of a search and its seconds."""
    began = time.perf_counter()
    trials = search(definition, budget, training_seed, device)
    return {"seconds": time.perf_counter() - began, "trials": [asdict(trial) for trial in trials]}
