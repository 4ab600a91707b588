"""N workers of Ray Train against N plain processes, on the same measured loop."""

from __future__ import annotations

import importlib.util
import tempfile
from typing import Any

import torch

from raymi.benchmarks.arms import with_settings
from raymi.benchmarks.clock import ratio
from raymi.benchmarks.loop import timed_loop
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.scaling import WARM_UP, no_scaling, pace, plain_run
from raymi.benchmarks.section import MeasurementFailed, Section, skipped
from raymi.collectives import Collectives
from raymi.config import Config
from raymi.ray_backend.bench_train import WorkersFailed, run_on_workers
from raymi.ray_backend.session import ray_session

_TITLE = "Ray Train against plain torch.distributed: images per second"


def measure_ray(plan: Plan) -> Section:
    """Times the loop under Ray Train and in plain processes of the same niceness, in turn."""
    if importlib.util.find_spec("ray") is None:
        return skipped(_TITLE, "Ray is not installed")
    if why := no_scaling(plan):
        return skipped(_TITLE, why)
    config = with_settings(plan.config, {"scaling.workers": plan.workers})
    job = {"config": config.model_dump_json(), "steps": plan.loop_steps}
    under_ray: list[float] = []
    plain: list[float] = []
    result: dict[str, Any] = {}
    with ray_session(config.scaling) as resources, tempfile.TemporaryDirectory() as storage:
        for _ in range(plan.runs):
            try:
                result = run_on_workers(
                    loop_on_worker, job, plan.workers, storage, use_gpu=resources.use_gpu
                )
            except WorkersFailed as error:
                raise MeasurementFailed(str(error)) from error
            under_ray.append(result["seconds"])
            plain.append(plain_run(plan, plan.workers, niceness=result["niceness"]))
    faster = ratio(plain, under_ray)
    return Section(
        _TITLE,
        ("launcher", "images / s", "Ray / plain"),
        [
            ["plain torch.distributed", pace(plan, plain), ""],
            ["Ray Train", pace(plan, under_ray), str(faster)],
        ],
        {
            "seconds": {"plain": plain, "ray": under_ray},
            "pace_of_ray_over_plain": vars(faster),
            "workers": plan.workers,
            "niceness": result["niceness"],
            "threads": result["threads"],
        },
        (
            f"{plan.workers} workers with {result['threads']} thread each, all at nice "
            f"{result['niceness']}, the niceness of Ray's workers; start-up not counted",
        ),
    )


def loop_on_worker(job: dict[str, Any], group: Collectives, device: torch.device) -> dict[str, Any]:
    """Runs the measured loop in a worker of Ray Train."""
    config = Config.model_validate_json(job["config"])
    return timed_loop(config, group, device, WARM_UP, job["steps"])
