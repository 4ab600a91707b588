"""Command `raymi.standalone`: trains without Ray and MLflow, on one device or under torchrun.

For profiling, and for clusters with another launcher. The run is stored in `out`/`name`
(runs/NAME); the same command continues it. The keys are those of python -m raymi.train --help.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raymi.commands.cli import EXIT_FAILED, EXIT_TIME_LIMIT, print_help, wants_help
from raymi.commands.preflight import input_problems
from raymi.commands.train.options import new_run
from raymi.config import Config, ScalingConfig
from raymi.engine.context import LocalContext, StopReason
from raymi.engine.loop import train
from raymi.errors import UserError
from raymi.files import not_writable
from raymi.overrides import split_words
from raymi.recipes import RECIPES
from raymi.runs.journal import JournalReader
from raymi.runs.record import evaluations_of
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import check_writable
from raymi.signals import Signals
from raymi.terminal.console import Terminal
from raymi.terminal.progress import ProgressDisplay
from raymi.terminal.summary import print_summary
from raymi.tracking.provenance import describe_run

USAGE = "python -m raymi.standalone name=NAME [recipe=NAME] [key=value ...] [--help]"
OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class StandaloneRequest:
    """A run to begin or to continue: its folder, configuration, recipe and command line."""

    folder: RunFolder
    config: Config
    recipe: str
    command: str


def standalone(words: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if wants_help(words):
        print_help(Terminal(), USAGE, __doc__, {}, takes=lambda key: False)
        return 0
    request = requested(words)
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


def requested(words: Sequence[str]) -> StandaloneRequest:
    """Parses and checks a command line.

    Raises:
        UserError: a line for each problem.
    """
    recipe, config, problems = new_run(split_words(words, {"recipe": RECIPES}))
    # the launcher decides on the number of workers, not the configuration
    one_worker = config.model_copy(update={"scaling": ScalingConfig()})
    problems += input_problems(one_worker, new_run=False)
    try:
        check_writable(config)
    except UserError as error:
        problems.append(str(error))
    if config.name is None:
        problems.append("name=NAME is needed: the run is stored in runs/NAME")
    if problems:
        raise UserError("\n".join(problems))
    assert config.name is not None
    folder = RunFolder((config.out or Path("runs").absolute()) / config.name)
    if folder.config.is_file() and _decisive(folder.read_config()) != _decisive(config):
        raise UserError(
            f"the run {folder.name} in {folder.path.parent} has other settings: give the same ones "
            "to continue it, or another name"
        )
    command = f"python -m raymi.standalone {shlex.join(words)}"
    return StandaloneRequest(folder, config, recipe, command)


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


def _decisive(config: Config) -> dict[str, Any]:
    """Returns the settings that decide a run's results, which cannot change when it continues."""
    return config.model_dump(exclude={"limit", "checkpoint", "tracking"})


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
