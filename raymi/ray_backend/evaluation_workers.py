"""Where an evaluation computes: on workers of a cluster, or, if one is enough, in this process."""

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
    """Where steps can be made: the kind of device, "cpu" or "cuda"; workers that share them; and
    what opens a pool, which ends with the open_workspace."""

    device: str
    workers: int
    open_pool: Callable[[WorkerJob], Pool]


@contextmanager
def open_workspace(
    scaling: ScalingConfig, tell: Callable[[str], None], resources: Resources | None = None
) -> Iterator[Workspace]:
    """For the length of an evaluation. SIGTERM within it ends it as Ctrl-C does: to be used in the
    main thread.

    Args: scaling, where a range of workers means as many as there is room for; tell, takes a line
        about what happens to workers; resources, of the `ray_session` that this is within, with
        places for such workers; None: one is opened where several workers are asked for.
    Raises: UserError where a cluster lacks what is asked for; Stopped on SIGTERM.
    """
    if scaling.most_workers == 1 and not in_ray_job():
        device = "cuda" if scaling.use_gpu != "false" and torch.cuda.is_available() else "cpu"
        with _threads(scaling.cpus_per_worker), ended_by_sigterm():
            yield Workspace(device, 1, lambda work: LocalPool(Attackers(work, device)))
        return
    session = ray_session(scaling, print_line=tell) if resources is None else nullcontext(resources)
    with session as there, ended_by_sigterm(), ExitStack() as pools:
        from raymi.ray_backend.attack_pool import AttackPool

        workers = min(scaling.most_workers, there.places)

        def open_pool(work: WorkerJob) -> Pool:
            pool = AttackPool(
                work,
                scaling.model_copy(update={"workers": workers}),
                use_gpu=there.use_gpu,
                import_path=os.getcwd(),
                tell=tell,
            )
            return pools.enter_context(pool)

        yield Workspace("cuda" if there.use_gpu else "cpu", workers, open_pool)


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """As many as a worker of a cluster has: results depend on it, in their last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)
