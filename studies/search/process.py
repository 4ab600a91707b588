"""Process of one search: `python -m studies.search.process`, started by `in_processes`."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch

from raymi.benchmarks.child import Job, main
from raymi.collectives import Collectives
from raymi.tuning.sweep_folder import Definition
from studies.search.one_search import search


def _search(job: Job, _: Collectives, device: torch.device) -> Job:
    began = time.perf_counter()
    definition = Definition.model_validate(job["definition"])
    trials = search(definition, job["budget"], job["training_seed"], device)
    return {"seconds": time.perf_counter() - began, "trials": [asdict(trial) for trial in trials]}


if __name__ == "__main__":
    main({"search": _search})
