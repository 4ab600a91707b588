"""Runs a function on several gloo ranks, each its own process, and collects what they return."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(
    fn: Callable[..., Any], world_size: int, *args: Any, tmp_path: Path, timeout: float = 400
) -> list[Any]:
    """Calls `fn(rank, world_size, *args)` on every rank of a fresh gloo group, on one thread each.

    Args:
        fn: a function at the top level of an importable module, such as a test module.
        world_size: number of processes.
        args: picklable; tensors are copied.
        tmp_path: a folder, the test's own.
        timeout: seconds until every rank must have ended.
    Returns: what fn returned, picklable, in the order of the ranks.
    Raises: the first exception of any rank, with that rank's traceback as a note; TimeoutError when
        a rank hangs; RuntimeError when one dies without an exception. No process is left behind.
    """
    folder = Path(tempfile.mkdtemp(dir=tmp_path, prefix="ranks-"))
    call = pickle.dumps((fn, args))
    context = _context()
    ranks: list[BaseProcess] = [
        context.Process(target=_rank, args=(rank, world_size, call, folder, timeout), daemon=True)
        for rank in range(world_size)
    ]
    try:
        for process in ranks:
            process.start()
        _wait_for(ranks, folder, timeout)
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
            if process.pid is not None:
                process.join()
    return [pickle.loads(_result(folder, rank).read_bytes()) for rank in range(world_size)]


def _context() -> Any:
    """Ranks fork from a server that has imported what takes long: 0.1 s each instead of 5 s for a
    spawn."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # the first optimiser imports torch._dynamo, the first digit scikit-learn
    slow = ["torch", "torch._dynamo", "sklearn.datasets", "raymi.engine.loop", "pytest"]
    context.set_forkserver_preload(slow)
    return context


def _rank(rank: int, world_size: int, call: bytes, folder: Path, timeout: float) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'store'}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        fn, args = pickle.loads(call)
        result = pickle.dumps(fn(rank, world_size, *args))
    except BaseException as error:
        _write(_error(folder, rank), _packed(error, rank))
        raise SystemExit(1) from None
    _write(_result(folder, rank), result)
    dist.destroy_process_group()


def _wait_for(ranks: list[BaseProcess], folder: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    running = list(ranks)
    while running:
        wait([process.sentinel for process in running], max(0, deadline - time.monotonic()))
        running = [process for process in running if process.exitcode is None]
        errors = [path for rank in range(len(ranks)) if (path := _error(folder, rank)).exists()]
        if errors:  # the ranks that lost their peer fail too, but later
            reports = [pickle.loads(path.read_bytes()) for path in errors]
            _, error, note = min(reports, key=lambda report: report[0])
            error.add_note(note)
            raise error
        for rank, process in enumerate(ranks):
            if process.exitcode not in (None, 0):
                raise RuntimeError(f"rank {rank} died with exit code {process.exitcode}")
        if running and time.monotonic() >= deadline:
            hung = [rank for rank, process in enumerate(ranks) if process in running]
            raise TimeoutError(f"ranks {hung} of {len(ranks)} did not end in {timeout} s")


def _packed(error: BaseException, rank: int) -> bytes:
    """Time, exception and note; a RuntimeError in place of an exception that cannot be pickled."""
    now, note = time.monotonic(), f"on rank {rank}:\n{traceback.format_exc()}"
    try:
        packed = pickle.dumps((now, error, note))
        pickle.loads(packed)
    except Exception:
        packed = pickle.dumps((now, RuntimeError(f"{type(error).__name__}: {error}"), note))
    return packed


def _write(path: Path, content: bytes) -> None:
    """Writes a file that readers see as a whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.rename(path)


def _result(folder: Path, rank: int) -> Path:
    return folder / f"result-{rank}"


def _error(folder: Path, rank: int) -> Path:
    return folder / f"error-{rank}"
