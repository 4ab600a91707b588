"""Ray session: joins the cluster of a job, or starts a local Ray on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from raymi.config import ScalingConfig
from raymi.errors import UserError
from raymi.hardware import available_cores, available_gpus
from raymi.ray_backend import connection, free_slots

_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # would print every line of a worker twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports are throttled to one an interval
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The default niceness of 15 starves workers beside other programs.
    "RAY_worker_niceness": "0",
    # After this time without the head, Ray ends a driver without a message: `head_watch` is faster.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
}
_NO_LIMIT = 1000
_ELASTIC = {
    # Limit of the wait for slots before Ray counts the nodes again: it counts a lost node for up to
    # 20 s. The limit covers the reservation of slots, not the start of processes. Ray's default is
    # 60.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}


@dataclass(frozen=True)
class Resources:
    """Resources of a Ray session.

    Attributes:
        use_gpu: Whether each worker has a GPU.
        slots: Number of workers that fit.
    """

    use_gpu: bool
    slots: int


def in_ray_job() -> bool:
    """Returns whether RAY_ADDRESS names a cluster, as within `ray job submit`."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_this_machine(scaling: ScalingConfig) -> None:
    """Checks that this machine has enough CPUs and GPUs, before Ray starts.

    Does nothing within a cluster, whose size only Ray knows.

    Raises:
        UserError: It has not.
    """
    if in_ray_job():
        return
    workers = scaling.most_workers
    cpus, cores = workers * scaling.cpus_per_worker, available_cores()
    if cpus > cores:
        raise UserError(
            f"scaling.workers={scaling.workers} with {scaling.cpus_per_worker} CPU each needs "
            f"{cpus} CPUs, this machine has {cores}: ask for fewer, or submit the run to a "
            "cluster (ray job submit)"
        )
    gpus = len(available_gpus())
    if scaling.use_gpu == "true" and gpus < workers:
        raise UserError(
            f"scaling.use_gpu=true with {workers} workers needs {workers} GPUs, "
            f"this machine has {gpus}: ask for fewer workers, or use_gpu=auto"
        )


def scale_to_fit(
    scaling: ScalingConfig, per_group: int = 1, max_groups: int | None = None
) -> ScalingConfig:
    """Sets the number of workers to what this machine's GPUs or cores, or the cluster, can hold.

    Args:
        scaling: Settings of one worker.
        per_group: Workers of a group, which starts as a whole, such as a trial.
        max_groups: Maximum number of groups; None: no limit.
    """
    if in_ray_job():
        groups = _NO_LIMIT if max_groups is None else max_groups
        workers: int | str = f"{per_group}..{per_group * groups}" if groups > 1 else per_group
    else:
        gpus = 0 if scaling.use_gpu == "false" else len(available_gpus())
        slots = gpus or available_cores() // scaling.cpus_per_worker
        groups = max(1, slots // per_group)
        workers = per_group * (groups if max_groups is None else min(groups, max_groups))
    return scaling.model_copy(update={"workers": workers})


@contextmanager
def ray_session(
    scaling: ScalingConfig,
    *,
    dashboard: bool = False,
    print_line: Callable[[str], None] = lambda line: None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Resources]:
    """Joins the job's cluster, or starts a local Ray and ends it on exit.

    Args:
        scaling: Requested workers.
        dashboard: Whether a local Ray has a dashboard; without one, Ray Tune never frees the slot
            of a stopped trial.
        print_line: Prints a message about a wait, or about unused GPUs.
        check: Called while Ray starts; an exception ends the wait.

    Raises:
        UserError: Ray does not start, the cluster does not answer, or it lacks CPUs or GPUs.
    """
    for name, value in (_ENVIRONMENT | (_ELASTIC if scaling.elastic else {})).items():
        os.environ.setdefault(name, value)
    with ExitStack() as stack:
        if in_ray_job():
            stack.enter_context(connection.join_cluster(check))
            resources = _of_cluster(scaling, print_line, check)
        else:
            cpus = scaling.most_workers * scaling.cpus_per_worker
            stack.enter_context(connection.start_local_ray(cpus, dashboard=dashboard, check=check))
            resources = _of_this_machine(scaling, print_line)
        yield resources


def _of_this_machine(scaling: ScalingConfig, print_line: Callable[[str], None]) -> Resources:
    gpus = len(available_gpus())
    use_gpu = scaling.use_gpu == "true" or (
        scaling.use_gpu == "auto" and gpus >= scaling.least_workers
    )
    if scaling.use_gpu == "auto" and gpus and not use_gpu:
        print_line(_unused_gpus(scaling, gpus, "this machine has"))
    return Resources(use_gpu, scaling.most_workers)


def _of_cluster(
    scaling: ScalingConfig, print_line: Callable[[str], None], check: Callable[[], None]
) -> Resources:
    bundle = {"CPU": scaling.cpus_per_worker}
    with_gpu = {**bundle, "GPU": 1}
    if scaling.use_gpu == "true":
        bundle = with_gpu
    free_slots.wait_for_slots(scaling, bundle, print_line, check)
    use_gpu = scaling.use_gpu == "true"
    if scaling.use_gpu == "auto":
        gpus = free_slots.num_slots(with_gpu)
        use_gpu = gpus >= scaling.least_workers
        if gpus and not use_gpu:
            print_line(_unused_gpus(scaling, gpus, "the cluster has slots for"))
    if use_gpu:
        bundle = with_gpu
    free_slots.print_missing_slots(scaling, bundle, print_line)
    return Resources(use_gpu, free_slots.num_slots(bundle))


def _unused_gpus(scaling: ScalingConfig, gpus: int, where: str) -> str:
    """Returns the warning about unused GPUs."""
    return (
        f"warning: scaling.workers={scaling.workers} needs a GPU for each worker, {where} {gpus}: "
        f"training on CPUs. Set scaling.workers={gpus} to use the GPUs, or scaling.use_gpu=false"
    )
