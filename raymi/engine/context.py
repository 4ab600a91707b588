"""What the training loop asks of the place where it runs; Ray Train is one implementation of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from raymi.collectives import Collectives, ProcessGroup


class Context(Protocol):
    """One worker's view of its place: who it is, with whom it computes, and whom it tells."""

    device: torch.device
    group: Collectives

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Tells the orchestrator that an epoch is complete and its checkpoint on disk."""

    def stop_requested(self) -> bool:
        """Whether the run should end here; the same answer on every worker. Called at each step."""


class LocalContext:
    """A plain process, or one of several that torch.distributed has joined.

    Args:
        device: where to compute.
        stop_file: a file whose appearance asks the run to write a checkpoint and end.
    """

    def __init__(self, device: torch.device | str = "cpu", stop_file: Path | None = None) -> None:
        self.device = torch.device(device)
        joined = dist.is_available() and dist.is_initialized()
        self.group: Collectives = ProcessGroup() if joined else Collectives()
        self._stop = StopFile(stop_file)

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Nobody to tell."""

    def stop_requested(self) -> bool:
        return self._stop.seen_by_rank_zero()


class StopFile:
    """Watches for a file on rank 0 and tells all ranks, so that all end at the same step."""

    INTERVAL = 0.2  # seconds between two looks at the file

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._next_look = 0.0
        self._seen = False
        self._group: Any = None
        self._shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if self._shared and dist.get_backend() != "gloo":
            # Asking over NCCL would make the CPU wait for the GPU at every step.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=30))

    def seen_by_rank_zero(self) -> bool:
        if self.path is not None and not self._seen and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self.INTERVAL
            self._seen = self.path.exists()
        if not self._shared:
            return self._seen
        flag = torch.tensor(self._seen, dtype=torch.int32)
        dist.broadcast(flag, src=0, group=self._group)
        return bool(flag)
