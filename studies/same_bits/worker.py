"""Worker of all runs, with the first version of raymi on PYTHONPATH.

It uses nothing of raymi but the training loop, the run folder, the checkpoint and the journal.
"""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raymi.config import Config
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.overrides import nest
from raymi.runs.checkpoint import load_checkpoint
from raymi.runs.journal import JournalReader
from raymi.runs.run_folder import RunFolder
from studies.same_bits.settings import SETTINGS, STOPPED, TINY

KEPT = ("position", "model", "average", "estimators", "learners", "best", "epoch_means")
"""Compared parts of a checkpoint; a version may have others."""

TIMES = {"time", "images_per_s", "train_seconds", "version"}
"""Fields of events that differ between two runs of one version."""


class StoppingContext(LocalContext):
    """Context whose run is stopped once, after two steps."""

    def __init__(self, stop_file: Path) -> None:
        super().__init__("cpu", stop_file, poll_seconds=0.0)
        self.stop_file, self.asked = stop_file, 0

    def stop_requested(self) -> Any:
        if self.asked == 2 and self.group.rank == 0:
            self.stop_file.touch()
        self.asked += 1
        return super().stop_requested()


def results(folder: Path, name: str, rank: int) -> dict[str, Any]:
    """Trains one run for an epoch; returns its checkpoint and its events without times."""
    config = Config.model_validate(nest({**TINY, **SETTINGS[name]}))
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if name == STOPPED:
        train(config, StoppingContext(run.stop_file), run, test=False)
        if rank == 0:
            run.stop_file.unlink()
        if dist.is_initialized():
            dist.barrier()
    train(config, LocalContext("cpu"), run, test=False)
    events = [
        {key: value for key, value in event.items() if key not in TIMES}
        for event in JournalReader(run.journal).new_events()
    ]
    checkpoint = load_checkpoint(run.checkpoints) or {}
    return {"checkpoint": {key: checkpoint[key] for key in KEPT}, "events": events}


def main(folder: Path, rank: int, world_size: int) -> None:
    """Trains all runs; rank 0 saves their results to `results.pt`."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if world_size > 1:
        store = f"file://{folder / 'store'}"
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world_size,
            timeout=timedelta(minutes=5),
        )  # fmt: skip
    found = {
        name: results(folder / str(number), name, rank) for number, name in enumerate(SETTINGS)
    }
    if rank == 0:
        torch.save(found, folder / "results.pt")
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
