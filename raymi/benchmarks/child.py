"""A process of a measurement: `python -m raymi.benchmarks.child FOLDER RANK NUM`.

Does the job in FOLDER/job.json and writes FOLDER/result-RANK. Started by `processes.in_processes`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raymi.benchmarks.loop import timed_loop
from raymi.benchmarks.memory import peak_of_steps
from raymi.collectives import Collectives, ProcessGroup
from raymi.config import Config

Job = dict[str, Any]
Kinds = Mapping[str, Callable[[Job, Collectives, torch.device], Job]]
"""Kinds of jobs: each returns a result from the job, the group of processes and the device."""


def main(kinds: Kinds) -> None:
    """Runs the job of this process, as the command line names it."""
    folder, rank, num = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    job: Job = json.loads((folder / "job.json").read_text())
    job |= job.get("each", [{}] * num)[rank]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    device = torch.device(job["device"], rank) if job["device"] == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = Collectives() if job.get("apart") else _join(folder, rank, num, device)
    result = kinds[job["kind"]](job, group, device)
    (folder / f"result-{rank}").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.destroy_process_group()


def _loop(job: Job, group: Collectives, device: torch.device) -> Job:
    os.nice(max(0, job.get("niceness", 0) - os.nice(0)))
    config = Config.model_validate_json(job["config"])
    return timed_loop(config, group, device, job["warm_up"], job["steps"])


def _memory(job: Job, _: Collectives, device: torch.device) -> Job:
    config = Config.model_validate_json(job["config"])
    return peak_of_steps(config, job["arm"], device, job.get("limit"))


def _join(folder: Path, rank: int, num: int, device: torch.device) -> Collectives:
    if num == 1:
        return Collectives()
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=num,
        timeout=timedelta(minutes=10),
    )
    return ProcessGroup()


def _end_with(parent: int) -> None:
    """NoCallback waits for the result of a process whose parent was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main({"loop": _loop, "memory": _memory})
