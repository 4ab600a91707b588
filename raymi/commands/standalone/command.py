"""Trains without Ray and MLflow, on one device or under torchrun."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist

from raymi.commands.cli import EXIT_FAILED, EXIT_TIME_LIMIT
from raymi.commands.standalone.options import StandaloneRequest
from raymi.config import Config
from raymi.engine.context import LocalContext, StopReason
from raymi.engine.loop import train
from raymi.files import not_writable
from raymi.runs.journal import JournalReader
from raymi.runs.record import evaluations_of
from raymi.runs.run_folder import RunFolder
from raymi.signals import Signals
from raymi.terminal.console import Terminal
from raymi.terminal.progress import ProgressDisplay
from raymi.terminal.summary import print_summary
from raymi.tracking.provenance import describe_run

OnEvent = Callable[[dict[str, Any]], None]


def standalone(request: StandaloneRequest) -> int:
    """Runs the command; returns its exit code."""
    is_first = int(os.environ.get("RANK", "0")) == 0
    display = ProgressDisplay(Terminal(), request.config)
    code = run(request, display.event, is_first=is_first)
    if is_first and code == 0:
        evaluations = evaluations_of(request.folder)
        places = {"run": str(request.folder.path)}
        print_summary(Terminal(), request.config, request.folder, evaluations, places)
    elif is_first:
        print("stopped with a checkpoint; the same command continues", file=sys.stderr)
    return code


def run(request: StandaloneRequest, on_event: OnEvent, *, is_first: bool) -> int:
    """Trains this process's part of a run.

    Args:
        request: run to begin or to continue.
        on_event: callback for each event of the journal, on rank 0.
        is_first: whether this process has rank 0.

    Returns:
        The exit code; 0: finished.
    """
    folder = request.folder
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder.path, error) from None
    with folder.lock() if is_first else nullcontext():
        if is_first:  # raymi.train can track the run in MLflow later
            describe_run(folder, request.recipe, request.command)
        try:
            return _train(request.config, folder, _join(request.config), on_event)
        finally:
            if dist.is_initialized():
                gc.collect()  # DDP is in a cycle; the group's threads end before the interpreter
                dist.destroy_process_group()


def _train(config: Config, folder: RunFolder, device: torch.device, on_event: OnEvent) -> int:
    context = JournalContext(device, folder, config, on_event)
    if context.group.rank == 0:
        folder.stop_file.unlink(missing_ok=True)
        folder.write_config(config)
    with Signals(folder.stop_file) as signals:
        outcome = train(config, context, folder)
    if outcome.finished:
        context.report({})
        return 0
    if signals.received is not None:
        return 128 + signals.received
    return EXIT_TIME_LIMIT if outcome.stop == StopReason.TIME_LIMIT else EXIT_FAILED


class JournalContext(LocalContext):
    """Local context whose rank 0 passes new events of the journal to a callback at each epoch."""

    def __init__(
        self, device: torch.device, folder: RunFolder, config: Config, on_event: OnEvent
    ) -> None:
        hours = config.limit.hours
        deadline = None if hours is None else time.time() + 3600 * hours
        super().__init__(device, folder.stop_file, deadline)
        self._on_event = on_event
        self._journal = JournalReader(folder.journal)
        self._journal.new_events()  # skips those of an earlier start

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Passes new events to the callback."""
        if self.group.rank == 0:
            for event in self._journal.new_events():
                self._on_event(event)


def _join(config: Config) -> torch.device:
    """Joins the other processes of `torchrun`, if any; returns this process's device."""
    cuda = torch.cuda.is_available() and config.scaling.use_gpu != "false"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    return device
