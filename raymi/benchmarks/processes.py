"""Measurements in fresh processes, which end with this one."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from raymi.benchmarks.section import MeasurementFailed
from raymi.collectives import Collectives, ProcessGroup

_SIGINT = {signal.SIGINT}


def run_processes(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    device: str = "cpu",
    threads: int = 1,
    *,
    connected: bool = True,
) -> list[Any]:
    """Calls `function(group, device, *arguments[rank])` in a fresh process for each rank.

    Args:
        function: function of a module, which returns values that JSON can hold.
        arguments: arguments of each process.
        device: "cpu" or "cuda".
        threads: threads of each process.
        connected: whether the processes form a group of torch.distributed.

    Returns:
        The result of each process, by rank.

    Raises:
        MeasurementFailed: a process ended without a result.
    """
    context = None
    with tempfile.TemporaryDirectory(prefix="raymi-bench-") as folder:
        work = (Path(folder), function, arguments, device, threads, connected)
        try:
            with _sigint_blocked():  # inherited: a process that starts prints no KeyboardInterrupt
                context = start_processes(
                    _process, work, len(arguments), join=False, start_method="spawn"
                )
            while not context.join():
                pass
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise MeasurementFailed(str(error).strip().splitlines()[-1]) from error
        finally:
            for process in context.processes if context is not None else ():
                process.kill()
                process.join()
        return [_result(Path(folder), rank) for rank in range(len(arguments))]


def _result(folder: Path, rank: int) -> Any:
    file = folder / f"result-{rank}"
    if not file.is_file():
        raise MeasurementFailed(f"process {rank} ended without a result")
    return json.loads(file.read_text())


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGINT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGINT)


def _process(
    rank: int,
    folder: Path,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    kind: str,
    threads: int,
    connected: bool,
) -> None:
    """Runs in each process; the parent's end sends SIGINT (torch sets this up)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGINT)
    for stream in (1, 2):  # errors reach the parent as exceptions
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    torch.set_num_threads(threads)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    group = Collectives()
    if connected and len(arguments) > 1:
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            init_method=f"file://{folder / 'store'}",
            rank=rank,
            world_size=len(arguments),
            timeout=timedelta(minutes=10),
        )
        group = ProcessGroup()
    result = function(group, device, *arguments[rank])
    (folder / f"result-{rank}").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.destroy_process_group()
