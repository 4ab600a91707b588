"""Ray as raymi uses it: the cluster that a job belongs to, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from raymi.config import ScalingConfig
from raymi.errors import UserError

_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or every line of a worker appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports are throttled to one an interval
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Resources:
    """What Ray gives a run: GPUs or not, and where."""

    use_gpu: bool
    joined_cluster: bool


def in_ray_job() -> bool:
    """Whether this process was told which cluster to use, as `ray job submit` does."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_this_machine(scaling: ScalingConfig) -> None:
    """Refuses more workers than this machine has CPUs or GPUs for, before Ray starts.

    Raises: UserError. Does nothing where a cluster is joined, whose size only Ray knows.
    """
    if in_ray_job():
        return
    asked, there = scaling.workers * scaling.cpus_per_worker, _num_cpus()
    if asked > there:
        raise UserError(
            f"scaling.workers={scaling.workers} with {scaling.cpus_per_worker} CPU each needs "
            f"{asked} CPUs, this machine has {there}: ask for fewer, or submit the run to a "
            "cluster (ray job submit)"
        )
    if scaling.use_gpu == "true" and _num_gpus() < scaling.workers:
        raise UserError(
            f"scaling.use_gpu=true with {scaling.workers} workers needs {scaling.workers} GPUs, "
            f"this machine has {_num_gpus()}: ask for fewer workers, or use_gpu=auto"
        )


@contextmanager
def ray_session(scaling: ScalingConfig) -> Iterator[Resources]:
    """Ray for the length of a run: joins the job's cluster, or starts one here and ends it.

    Raises: UserError where a cluster lacks the CPUs or GPUs that are asked for.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

    joined = in_ray_job()
    if joined:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            address="local",
            num_cpus=scaling.workers * scaling.cpus_per_worker,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        yield _resources(scaling, joined)
    finally:
        ray.shutdown()


def _resources(scaling: ScalingConfig, joined: bool) -> Resources:
    import ray

    if not joined:
        use_gpu = scaling.use_gpu == "true" or (
            scaling.use_gpu == "auto" and _num_gpus() >= scaling.workers
        )
        return Resources(use_gpu, joined)

    cpus = scaling.workers * scaling.cpus_per_worker
    need = {"CPU": float(cpus)}
    if scaling.use_gpu == "true":
        need["GPU"] = float(scaling.workers)
    deadline = time.monotonic() + 60 * scaling.wait_minutes
    if scaling.wait_minutes > 0:
        from ray.autoscaler.sdk import request_resources

        bundle = {kind: int(amount / scaling.workers) for kind, amount in need.items()}
        request_resources(bundles=[bundle] * scaling.workers)
    while missing := _missing(need, ray.cluster_resources()):
        if time.monotonic() >= deadline:
            raise UserError(
                f"scaling.workers={scaling.workers} needs what the cluster does not have: "
                f"{missing}. Ask for fewer workers, add nodes, or set scaling.wait_minutes to "
                "wait for an autoscaler"
            )
        time.sleep(1)
    there = ray.cluster_resources().get("GPU", 0.0)
    return Resources(
        scaling.use_gpu == "true" or (scaling.use_gpu == "auto" and there >= scaling.workers),
        joined,
    )


def _missing(need: dict[str, float], there: dict[str, float]) -> str:
    return ", ".join(
        f"{amount:g} {kind}s asked, {there.get(kind, 0):g} there"
        for kind, amount in need.items()
        if there.get(kind, 0) < amount
    )


def _num_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
