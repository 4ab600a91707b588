"""Ray as raymi uses it: the cluster that a job belongs to, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from raymi.config import ScalingConfig
from raymi.errors import UserError, first_line
from raymi.hardware import available_cores, available_gpus

_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or every line of a worker appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports are throttled to one an interval
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_ALONE: dict[str, str | None] = {
    # Ray Train has a guard over a run's places, which asks the dashboard. Where there is none, it
    # looks for it for 20 s, and a run that ends before waits for it. At an address that cannot be,
    # it gives up at once. Places that are left over end with the Ray that is started here.
    "RAY_API_SERVER_ADDRESS": "no-dashboard://here",
}
_OWN_DASHBOARD: dict[str, str | None] = {
    "RAY_API_SERVER_ADDRESS": None,  # of a cluster to which the user submits jobs
}
_ANY_NUMBER = 1000
_JOIN_SECONDS = 60.0  # after which no more attempts are made
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
def ray_session(scaling: ScalingConfig, *, dashboard: bool = False) -> Iterator[Resources]:
    """Ray for the length of a run: joins the job's cluster, or starts one here and ends it.

    Args: scaling; dashboard, of a Ray that is started here: without it Ray Tune never gets back the
        place of a trial that it stops.
    Raises: UserError where a cluster does not answer, or lacks the CPUs or GPUs that are asked for.
    """
    joined = in_ray_job()
    for name, value in (_ENVIRONMENT | (_ELASTIC if scaling.elastic else {})).items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

    if joined:
        _join()
    else:
        # Of the processes that are started now, and of their children.
        with _environment(_OWN_DASHBOARD if dashboard else _ALONE):
            ray.init(
                address="local",
                num_cpus=scaling.most_workers * scaling.cpus_per_worker,
                include_dashboard=dashboard,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        yield _resources(scaling, joined)
    finally:
        ray.shutdown()


def _join() -> None:
    """Connects to the job's cluster: on a busy node that may take more time than Ray waits for.

    Raises: UserError where it does not answer.
    """
    import ray

    deadline = time.monotonic() + _JOIN_SECONDS
    while True:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
            return
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() > deadline:
                reason, *_ = first_line(error.__cause__ or error).split(". ")  # then a traceback
                raise UserError(
                    f"the Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} does not answer "
                    f"({reason}): see whether it is up (ray status), "
                    "export RAY_AUTH_MODE=token if it wants a token, or unset RAY_ADDRESS to use "
                    "this machine"
                ) from None


@contextmanager
def _environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables within, whatever the user has, None: not there; then the user's own
    again."""
    before = {name: os.environ.get(name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _resources(scaling: ScalingConfig, joined: bool) -> Resources:
    if not joined:
        use_gpu = scaling.use_gpu == "true" or (
            scaling.use_gpu == "auto" and len(available_gpus()) >= scaling.least_workers
        )
        return Resources(use_gpu, joined, scaling.most_workers)
    bundle = {"CPU": scaling.cpus_per_worker}
    with_gpu = {**bundle, "GPU": 1}
    if scaling.use_gpu == "true":
        bundle = with_gpu
    _wait_for_places(scaling, bundle)
    auto = scaling.use_gpu == "auto" and _places(with_gpu) >= scaling.least_workers
    use_gpu = scaling.use_gpu == "true" or auto
    return Resources(use_gpu, joined, _places(with_gpu if use_gpu else bundle))


def _wait_for_places(scaling: ScalingConfig, bundle: dict[str, int]) -> None:
    """Waits at most `wait_minutes` for a cluster that grows to have a place for each worker.

    Raises: UserError where it then has not even those for the least number.
    """
    from ray.autoscaler.sdk import request_resources

    deadline = time.monotonic() + 60 * scaling.wait_minutes
    if scaling.wait_minutes > 0:
        request_resources(bundles=[bundle] * scaling.most_workers)
    try:
        while (places := _places(bundle)) < scaling.most_workers:
            if time.monotonic() >= deadline:
                if places >= scaling.least_workers:
                    return
                each = " and ".join(f"{amount} {kind}" for kind, amount in bundle.items())
                raise UserError(
                    f"scaling.workers={scaling.workers} with {each} each, but the nodes of the "
                    f"cluster have places for {places}: ask for fewer workers, add nodes, or set "
                    "scaling.wait_minutes to wait for an autoscaler"
                )
            time.sleep(1)
    finally:
        if scaling.wait_minutes > 0:
            request_resources(bundles=[])  # Ray keeps a request until it is replaced


def _places(bundle: dict[str, int]) -> int:
    """Workers that the nodes have room for; a worker does not spread over nodes."""
    import ray

    return sum(
        min(int(node["Resources"].get(kind, 0) // amount) for kind, amount in bundle.items())
        for node in ray.nodes()
        if node["Alive"]
    )
