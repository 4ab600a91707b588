"""Interface between the training loop and its host; Ray Train is one implementation."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from raymi.collectives import Collectives, ProcessGroup

POLL_SECONDS = 0.2
"""Seconds between two checks of the files that request a stop."""


class StopReason(IntEnum):
    """Reason for the end of a run before its last epoch."""

    REQUESTED = 1
    TIME_LIMIT = 2
    EPOCH = 3


class Context(Protocol):
    """Host of one worker: its device and group, requests to it, and its reports."""

    device: torch.device
    group: Collectives
    node: int
    """Number of its machine within the run, from 0."""
    first_on_node: bool
    """True on the worker that records system metrics of its machine."""

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Reports that an epoch is complete and its checkpoint on disk.

        Args:
            metrics: `phase`, `epoch` (from 1), and validation metrics `val/...`.
        """

    def stop_requested(self) -> StopReason | None:
        """Returns why the run should end here, or None; the same on every worker.

        Called before each step, and after each block of an evaluation.
        """

    def checkpoint_requested(self) -> bool:
        """Returns whether a checkpoint is due before the next step, as workers may be lost.

        True once for each reason; the same on every worker. Called after each step, with at least
        one call of `stop_requested` in between, whose broadcast can carry the decision.
        """

    def agree(self, answer: bool) -> bool:
        """Returns rank 0's answer; all workers call this at the same point."""


class LocalContext:
    """Context of a plain process, or of a process in a torch.distributed group.

    Args:
        device: of the worker.
        stop_file: requests a checkpoint and the end of the run once it exists.
        deadline: seconds since 1970 at which the same is requested; None: never.
        poll_seconds: seconds between two checks of the stop file.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        stop_file: Path | None = None,
        deadline: float | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.device = torch.device(device)
        joined = dist.is_available() and dist.is_initialized()
        self.group: Collectives = ProcessGroup() if joined else Collectives()
        self.node = int(os.environ.get("GROUP_RANK", "0")) if joined else 0  # torchrun's
        self.first_on_node = not joined or int(os.environ.get("LOCAL_RANK", self.group.rank)) == 0
        self._stop = StopRequest(stop_file, deadline=deadline, poll_seconds=poll_seconds)
        self._flags = RankZeroFlags()

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Does nothing, as no driver listens."""

    def stop_requested(self) -> StopReason | None:
        """Returns why the run should end here, or None; see `Context`."""
        (reason,) = self._flags.broadcast(self._stop.reason() or 0)
        return StopReason(reason) if reason else None

    def checkpoint_requested(self) -> bool:
        """Returns False, as no worker is lost one by one."""
        return False

    def agree(self, answer: bool) -> bool:
        """Returns rank 0's answer; see `Context`."""
        (agreed,) = self._flags.broadcast(answer)
        return bool(agreed)


class RankZeroFlags:
    """Broadcasts of rank 0's decisions: only rank 0 reads clocks and files."""

    def __init__(self) -> None:
        self._group: Any = None
        self._shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if self._shared and dist.get_backend() != "gloo":
            # NCCL would make the CPU wait for the GPU at every step.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=30))

    def broadcast(self, *flags: int) -> tuple[int, ...]:
        """Returns rank 0's flags; all workers call this at the same point, with as many flags."""
        if not self._shared:
            return flags
        values = torch.tensor(flags, dtype=torch.int32)
        dist.broadcast(values, src=0, group=self._group)
        return tuple(values.tolist())


class StopRequest:
    """Request to stop by a file that exists or a deadline that has passed.

    Args:
        *files: each of them requests a stop; None: no file.
        deadline: seconds since 1970; None: never.
        poll_seconds: seconds between two checks of the files.
    """

    def __init__(
        self,
        *files: Path | None,
        deadline: float | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.files = [file for file in files if file is not None]
        self.poll_seconds = poll_seconds
        # By a monotonic clock: setting the clock back must not postpone the end.
        left = None if deadline is None else deadline - time.time()
        self._end = None if left is None else time.monotonic() + left
        self._next_poll = 0.0
        self._reason: StopReason | None = None

    def reason(self) -> StopReason | None:
        """Returns why a stop was requested; None: it was not."""
        if self._reason is None and time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + self.poll_seconds
            if self._end is not None and time.monotonic() >= self._end:
                self._reason = StopReason.TIME_LIMIT
            with suppress(OSError):  # storage is away: the next write reports it
                if any(file.exists() for file in self.files):
                    self._reason = StopReason.REQUESTED
        return self._reason
