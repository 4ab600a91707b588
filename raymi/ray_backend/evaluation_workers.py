"""Workspace of an evaluation: workers on Ray, or this process if one worker is enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from raymi.config import ScalingConfig
from raymi.evaluation.scheduler import LocalPool, Pool
from raymi.evaluation.worker_job import Attackers, WorkerJob
from raymi.ray_backend.session import Resources, in_ray_job, ray_session
from raymi.signals import ended_by_sigterm


@dataclass(frozen=True)
class Workspace:
    """Compute resources of an evaluation.

    Attributes:
        device: "cpu" or "cuda".
        workers: Number of workers.
        open_pool: Opens a pool of workers that closes with the workspace.
    """

    device: str
    workers: int
    open_pool: Callable[[WorkerJob], Pool]


@contextmanager
def open_workspace(
    scaling: ScalingConfig,
    on_message: Callable[[str], None],
    resources: Resources | None = None,
    *,
    here: bool = False,
) -> Iterator[Workspace]:
    """Opens the workspace of an evaluation, in the main thread; SIGTERM ends it like Ctrl-C.

    Args:
        scaling: Requested workers; of a range as many as fit.
        on_message: Receives messages about workers.
        resources: Resources of the surrounding `ray_session`; None: opens a session if several
            workers are requested.
        here: Use this process, also within a Ray job.

    Raises:
        UserError: The cluster lacks the requested resources.
        Stopped: On SIGTERM.
    """
    if here or (scaling.most_workers == 1 and not in_ray_job()):
        device = "cuda" if scaling.use_gpu != "false" and torch.cuda.is_available() else "cpu"
        with _threads(scaling.cpus_per_worker), ended_by_sigterm():
            yield Workspace(device, 1, lambda job: LocalPool(Attackers(job, device)))
        return
    session = (
        ray_session(scaling, print_line=on_message) if resources is None else nullcontext(resources)
    )
    with session as available, ended_by_sigterm(), ExitStack() as pools:
        from raymi.ray_backend.attack_pool import AttackPool

        workers = min(scaling.most_workers, available.slots)

        def open_pool(job: WorkerJob) -> Pool:
            pool = AttackPool(
                job,
                scaling.model_copy(update={"workers": workers}),
                use_gpu=available.use_gpu,
                import_path=os.getcwd(),
                on_message=on_message,
            )
            return pools.enter_context(pool)

        yield Workspace("cuda" if available.use_gpu else "cpu", workers, open_pool)


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """Sets the number of CPU threads, on which results depend, as in a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)
