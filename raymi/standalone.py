"""`python -m raymi.standalone name=NAME [recipe=NAME] [key=value ...]`: training without Ray and
MLflow.

On one device as it is, on several under `torchrun`: for profiling, for clusters with a launcher of
their own, and to see that orchestration changes nothing. The run is kept in `out`/`name`
(runs/NAME), and continued where it is there already.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raymi.commands.cli import EXIT_FAILED, EXIT_TIME_LIMIT, run_command
from raymi.commands.preflight import input_problems
from raymi.config import Config, ScalingConfig
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.errors import UserError
from raymi.files import not_writable
from raymi.overrides import examine, split_words
from raymi.recipes import RECIPES, on_recipe
from raymi.runs.journal import JournalReader
from raymi.runs.record import evaluations_of
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import check_writable, resolve_pretrained
from raymi.signals import Signals
from raymi.terminal.console import Terminal
from raymi.terminal.progress import ProgressDisplay
from raymi.terminal.summary import print_summary
from raymi.tracking.provenance import describe_run


class PrintingContext(LocalContext):
    """A local context whose rank 0 prints what the journal says, at each epoch."""

    def __init__(self, device: torch.device, folder: RunFolder, config: Config) -> None:
        hours = config.limit.hours
        deadline = None if hours is None else time.time() + 3600 * hours
        super().__init__(device, folder.stop_file, deadline)
        self._journal = JournalReader(folder.journal)
        self._journal.new_events()  # those of before were told before
        self._display = ProgressDisplay(Terminal(), config)

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Prints the new events."""
        if self.group.rank == 0:
            for event in self._journal.new_events():
                self._display.event(event)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_train, argv)


def _train(words: list[str]) -> int:
    if {"--help", "-h"} & set(words):
        print(f"{__doc__}\nThe keys are those of python -m raymi.train --help.")
        return 0
    parsed = split_words(words, {"recipe": RECIPES})
    tree, unknown = on_recipe(parsed.own.get("recipe", "quickstart"), parsed.settings)
    config, wrong = examine(tree)
    config, missing = resolve_pretrained(config)
    problems = [
        *parsed.problems,
        *unknown,
        *wrong,
        *missing,
        *input_problems(_one_place(config), new_run=False),
    ]
    try:
        check_writable(config)
    except UserError as error:
        problems.append(str(error))
    if config.name is None:
        problems.append("name=NAME is needed: runs/NAME is where the run is kept and continued")
    if problems:
        raise UserError("\n".join(problems))
    assert config.name is not None
    folder = RunFolder((config.out or Path("runs").absolute()) / config.name)
    if folder.config.is_file() and _settled(folder.read_config()) != _settled(config):
        raise UserError(
            f"the run {folder.name} in {folder.path.parent} has other settings: give the same ones "
            "to continue it, or another name"
        )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder.path, error) from None
    first = int(os.environ.get("RANK", "0")) == 0
    command = f"python -m raymi.standalone {shlex.join(words)}"
    with folder.lock() if first else nullcontext():
        if first:  # for MLflow, into which raymi.train can bring the run later
            describe_run(folder, parsed.own.get("recipe", "quickstart"), command)
        return _run(config, folder)


def _run(config: Config, folder: RunFolder) -> int:
    """This process's part of a run; returns the exit code."""
    device = _join(config)
    try:
        context = PrintingContext(device, folder, config)
        if context.group.rank == 0:
            folder.stop_file.unlink(missing_ok=True)
            folder.write_config(config)
        with Signals(folder.stop_file) as signals:
            outcome = train(config, context, folder)
        if context.group.rank == 0 and outcome.finished:
            context.report({})
            results = evaluations_of(folder)
            print_summary(Terminal(), config, folder, results, {"run": str(folder.path)})
        if outcome.finished:
            return 0
        if context.group.rank == 0:
            print("stopped with a checkpoint; the same command continues", file=sys.stderr)
        if signals.received is not None:
            return 128 + signals.received
        asked = folder.stop_file.exists() or config.limit.hours is None
        return EXIT_FAILED if asked else EXIT_TIME_LIMIT
    finally:
        if dist.is_initialized():
            gc.collect()  # DDP is in a cycle; the group's threads must end before the interpreter
            dist.destroy_process_group()


def _settled(config: Config) -> dict[str, Any]:
    """What decides a run's results, and so cannot change when it is continued."""
    return config.model_dump(exclude={"limit", "checkpoint", "tracking"})


def _one_place(config: Config) -> Config:
    """For the checks: the launcher decides on the number of workers, not the configuration."""
    return config.model_copy(update={"scaling": ScalingConfig()})


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


if __name__ == "__main__":
    sys.exit(main())
