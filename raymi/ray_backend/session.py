"""Ray as raymi uses it: the cluster that a job belongs to, or one of its own on this machine."""

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
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or every line of a worker appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports are throttled to one an interval
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's workers have niceness 15: beside other programs on the machine they hardly run.
    "RAY_worker_niceness": "0",
    # Ray ends a driver without a word once the head was away for this time: raymi does it before.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
}
_ANY_NUMBER = 1000
_ELASTIC = {
    # For up to 20 s after a node is lost, Ray counts it and asks for a place on it: how long it
    # waits for that place, before it counts again. Only the reservation of the places is limited,
    # not the start of processes on them. Ray's default is 60.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}


@dataclass(frozen=True)
class Resources:
    """What Ray gives a run: GPUs or not, where, and how many workers there is room for."""

    use_gpu: bool
    joined_cluster: bool
    places: int


def in_ray_job() -> bool:
    """Whether this process was told which cluster to use, as `ray job submit` does."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_this_machine(scaling: ScalingConfig) -> None:
    """Refuses more workers than this machine has CPUs or GPUs for, before Ray starts.

    Raises: UserError. Does nothing where a cluster is joined, whose size only Ray knows.
    """
    if in_ray_job():
        return
    workers = scaling.most_workers
    asked, there = workers * scaling.cpus_per_worker, available_cores()
    if asked > there:
        raise UserError(
            f"scaling.workers={scaling.workers} with {scaling.cpus_per_worker} CPU each needs "
            f"{asked} CPUs, this machine has {there}: ask for fewer, or submit the run to a "
            "cluster (ray job submit)"
        )
    gpus = len(available_gpus())
    if scaling.use_gpu == "true" and gpus < workers:
        raise UserError(
            f"scaling.use_gpu=true with {workers} workers needs {workers} GPUs, "
            f"this machine has {gpus}: ask for fewer workers, or use_gpu=auto"
        )


def as_many_as_fit(scaling: ScalingConfig, each: int = 1, most: int | None = None) -> ScalingConfig:
    """Workers for whatever there is room for: this machine's GPUs or cores, or a cluster's.

    Args: each, workers of one thing that computes; most, of these things; None: any number.
    """
    if in_ray_job():
        things = _ANY_NUMBER if most is None else most
        workers: int | str = f"{each}..{each * things}" if things > 1 else each
    else:
        gpus = 0 if scaling.use_gpu == "false" else len(available_gpus())
        places = gpus or available_cores() // scaling.cpus_per_worker
        things = max(1, places // each)
        workers = each * (things if most is None else min(things, most))
    return scaling.model_copy(update={"workers": workers})


@contextmanager
def ray_session(
    scaling: ScalingConfig,
    *,
    dashboard: bool = False,
    print_line: Callable[[str], None] = lambda line: None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Resources]:
    """Ray for the length of a run: joins the job's cluster, or starts one here and ends it.

    Args:
        scaling: Workers that are asked for.
        dashboard: Whether a Ray that is started here has one: without it Ray Tune never gets back
            the place of a trial that it stops.
        say: Takes lines about waits, and about GPUs that are not used.
        check: Called while Ray starts; an exception ends the wait.

    Raises:
        UserError: Ray does not start, a cluster does not answer, or lacks the CPUs or GPUs that are
            asked for.
    """
    for name, value in (_ENVIRONMENT | (_ELASTIC if scaling.elastic else {})).items():
        os.environ.setdefault(name, value)
    with ExitStack() as stack:
        if in_ray_job():
            stack.enter_context(connection.joined(check))
            resources = _of_cluster(scaling, print_line, check)
        else:
            cpus = scaling.most_workers * scaling.cpus_per_worker
            stack.enter_context(connection.started(cpus, dashboard=dashboard, check=check))
            resources = _of_this_machine(scaling, print_line)
        yield resources


def _of_this_machine(scaling: ScalingConfig, print_line: Callable[[str], None]) -> Resources:
    gpus = len(available_gpus())
    use_gpu = scaling.use_gpu == "true" or (
        scaling.use_gpu == "auto" and gpus >= scaling.least_workers
    )
    if scaling.use_gpu == "auto" and gpus and not use_gpu:
        print_line(_unused_gpus(scaling, gpus, "this machine has"))
    return Resources(use_gpu, False, scaling.most_workers)


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
            print_line(_unused_gpus(scaling, gpus, "the cluster has places for"))
    if use_gpu:
        bundle = with_gpu
    free_slots.print_missing_slots(scaling, bundle, print_line)
    return Resources(use_gpu, True, free_slots.num_slots(bundle))


def _unused_gpus(scaling: ScalingConfig, gpus: int, where: str) -> str:
    """Returns the warning of a run that leaves GPUs unused."""
    return (
        f"warning: scaling.workers={scaling.workers} needs a GPU for each worker, {where} {gpus}: "
        f"training on CPUs. Set scaling.workers={gpus} to use the GPUs, or scaling.use_gpu=false"
    )
