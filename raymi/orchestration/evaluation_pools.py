"""Where an evaluation computes: on workers of a cluster, or, if one is enough, in this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from raymi.config import ScalingConfig
from raymi.evaluation.run import InThisProcess, Pool
from raymi.evaluation.work import Attackers, Work
from raymi.orchestration.launch import Stopped
from raymi.orchestration.ray_session import in_ray_job, ray_session


@dataclass(frozen=True)
class OpenPool:
    """A pool that takes steps; the kind of device that they are made on, "cpu" or "cuda"; workers
    that share them."""

    pool: Pool
    device: str
    workers: int


@contextmanager
def open_pool(
    work: Work, scaling: ScalingConfig, tell: Callable[[str], None]
) -> Iterator[OpenPool]:
    """A pool for the length of an evaluation. SIGTERM within it ends it as Ctrl-C does.

    Args: work; scaling, where a range of workers means as many as there is room for; tell, takes a
        line about what happens to workers.
    Raises: UserError where a cluster lacks what is asked for; Stopped on SIGTERM.
    """
    if scaling.most_workers == 1 and not in_ray_job():
        cuda = scaling.use_gpu != "false" and torch.cuda.is_available()
        with _threads(scaling.cpus_per_worker), _ended_by_sigterm():
            device = "cuda" if cuda else "cpu"
            yield OpenPool(InThisProcess(Attackers(work, device)), device, 1)
        return
    with ray_session(scaling) as resources, _ended_by_sigterm():  # Ray takes the signal for itself
        from raymi.orchestration.attack_pool import AttackPool

        workers = min(scaling.most_workers, resources.places)
        pool = AttackPool(
            work,
            scaling.model_copy(update={"workers": workers}),
            use_gpu=resources.use_gpu,
            import_path=os.getcwd(),
            tell=tell,
        )
        with pool:
            yield OpenPool(pool, "cuda" if resources.use_gpu else "cpu", workers)


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """As many as a worker of a cluster has: results depend on it, in their last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    def end(signum: int, frame: Any) -> None:
        raise Stopped(signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
