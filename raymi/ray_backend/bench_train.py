"""N workers of Ray Train against N plain processes, on the same measured loop."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import threading
from typing import Any

from raymi.benchmarks.arms import with_settings
from raymi.benchmarks.clock import ratio
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.scaling import WARM_UP, no_scaling, pace, plain_run
from raymi.benchmarks.section import MeasurementFailed, Section, skipped

_TITLE = "Ray Train against plain torch.distributed: images per second"


def measure_ray(plan: Plan) -> Section:
    """Times the loop under Ray Train and in plain processes of the same niceness, in turn."""
    if importlib.util.find_spec("ray") is None:
        return skipped(_TITLE, "Ray is not installed")
    if why := no_scaling(plan):
        return skipped(_TITLE, why)
    from raymi.ray_backend.session import ray_session

    scaling = with_settings(plan.config, {"scaling.workers": plan.workers}).scaling
    under_ray: list[float] = []
    plain: list[float] = []
    found: dict[str, Any] = {}
    with ray_session(scaling) as resources, tempfile.TemporaryDirectory() as storage:
        for _ in range(plan.runs):
            found = _ray_run(plan, storage, use_gpu=resources.use_gpu)
            under_ray.append(found["seconds"])
            plain.append(plain_run(plan, plan.workers, niceness=found["niceness"]))
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
            "niceness": found["niceness"],
            "threads": found["threads"],
        },
        (
            f"{plan.workers} workers with {found['threads']} thread each, all at nice "
            f"{found['niceness']}, as Ray has its workers; start-up not counted",
        ),
    )


def _ray_run(plan: Plan, storage: str, *, use_gpu: bool) -> dict[str, Any]:
    """The result of rank 0. Ray Train runs in a thread, so that Ctrl-C is ours to handle."""
    ended: dict[str, Any] = {}

    def fit() -> None:
        try:
            ended["result"] = _fit(plan, storage, use_gpu)
        except BaseException as error:
            ended["error"] = error

    thread = threading.Thread(target=fit, daemon=True, name="ray-train")
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if "error" in ended:
        raise MeasurementFailed(f"Ray Train: {ended['error']}".splitlines()[0]) from ended["error"]
    return ended["result"]


def _fit(plan: Plan, storage: str, use_gpu: bool) -> dict[str, Any]:
    import ray.train
    from ray.train.torch import TorchTrainer

    config = with_settings(plan.config, {"scaling.workers": plan.workers})
    trainer = TorchTrainer(
        ray_worker,
        train_loop_config={
            "config": config.model_dump_json(),
            "steps": plan.loop_steps,
            "import_path": os.getcwd(),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": 1, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(storage_path=storage),
    )
    return trainer.fit().return_value


def ray_worker(job: dict[str, Any]) -> dict[str, Any]:
    """What runs in each worker of Ray Train: the measured loop."""
    import ray.train.torch
    import torch

    from raymi.benchmarks.loop import timed_loop
    from raymi.collectives import ProcessGroup
    from raymi.config import Config

    if job["import_path"] not in sys.path:
        sys.path.insert(0, job["import_path"])  # the user's own models
    torch.set_num_threads(1)
    config, device = Config.model_validate_json(job["config"]), ray.train.torch.get_device()
    result = timed_loop(config, ProcessGroup(), device, WARM_UP, job["steps"])
    return {**result, "niceness": os.nice(0)}
