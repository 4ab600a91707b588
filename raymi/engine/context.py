"""What the training loop asks of the place where it runs; Ray Train is one implementation of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from raymi.collectives import Collectives, ProcessGroup

LOOK_EVERY = 0.2
"""Seconds between two looks at the files that ask a run to stop."""


class Context(Protocol):
    """One worker's view of its place: who it is, with whom it computes, and whom it tells."""

    device: torch.device
    group: Collectives
    node: int
    """Number of its machine among those of the run, from 0."""
    first_on_node: bool
    """Whether it is the one of its machine's workers that speaks for the machine."""

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Tells the orchestrator that an epoch is complete and its checkpoint on disk.

        Args: metrics: `phase`, `epoch` (from 1), and those of its validation, `val/...`.
        """

    def stop_requested(self) -> bool:
        """Whether the run should end here; the same answer on every worker. Called before each
        step, and after each block of a measurement."""

    def checkpoint_requested(self) -> bool:
        """Whether a checkpoint should be written before the next step, as workers may be lost;
        once for each reason, the same answer on every worker. Called after each step, so that
        `stop_requested` was called since the last time, once or more often: what workers must
        agree on can travel with its answer."""

    def agree(self, answer: bool) -> bool:
        """Rank 0's answer to a question that all workers ask at the same point."""


class LocalContext:
    """A plain process, or one of several that torch.distributed has joined.

    Args:
        device: where to compute.
        stop_file: a file whose appearance asks the run to write a checkpoint and end.
        deadline: seconds since the epoch at which it is asked, too; None: never.
        look_every: seconds between two looks at the stop file.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        stop_file: Path | None = None,
        deadline: float | None = None,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self.device = torch.device(device)
        joined = dist.is_available() and dist.is_initialized()
        self.group: Collectives = ProcessGroup() if joined else Collectives()
        self.node = int(os.environ.get("GROUP_RANK", "0")) if joined else 0  # torchrun's
        self.first_on_node = not joined or int(os.environ.get("LOCAL_RANK", self.group.rank)) == 0
        self._stop = StopRequest(stop_file, deadline=deadline, look_every=look_every)
        self._answers = Answers()

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Does nothing: no driver listens."""

    def stop_requested(self) -> bool:
        return self.agree(self._stop.is_made())

    def checkpoint_requested(self) -> bool:
        return False

    def agree(self, answer: bool) -> bool:
        (agreed,) = self._answers.of_rank_zero(answer)
        return agreed


class Answers:
    """Answers of rank 0, which alone looks at clocks and files, so that all do the same."""

    def __init__(self) -> None:
        self._group: Any = None
        self._shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if self._shared and dist.get_backend() != "gloo":
            # Asking over NCCL would make the CPU wait for the GPU at every step.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=30))

    def of_rank_zero(self, *answers: bool) -> tuple[bool, ...]:
        """What rank 0 answers to one or several questions, which all workers ask in the same order:
        one broadcast."""
        if not self._shared:
            return answers
        flags = torch.tensor(answers, dtype=torch.int32)
        dist.broadcast(flags, src=0, group=self._group)
        return tuple(map(bool, flags.tolist()))


class StopRequest:
    """A file that appears, or a time that is reached, as one worker sees them: rank 0's answer
    counts.

    Args:
        files: any of them asks for it; None: no file.
        deadline: seconds since the epoch; None: never.
        look_every: seconds between two looks at the files.
    """

    def __init__(
        self,
        *files: Path | None,
        deadline: float | None = None,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self.files = [file for file in files if file is not None]
        self.look_every = look_every
        # From here on by a clock that nobody sets back, which would put the end off.
        left = None if deadline is None else deadline - time.time()
        self._end = None if left is None else time.monotonic() + left
        self._next_look = 0.0
        self._seen = False

    def is_made(self) -> bool:
        """Whether the run was asked to stop, by now."""
        if not self._seen and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self.look_every
            late = self._end is not None and time.monotonic() >= self._end
            self._seen = late
            with suppress(OSError):  # storage that is away: the next write says so
                self._seen = late or any(file.exists() for file in self.files)
        return self._seen
