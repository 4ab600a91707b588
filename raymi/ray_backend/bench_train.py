"""Ray Train for the benchmark: runs a function on workers with one thread each."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from raymi.collectives import Collectives, ProcessGroup
from raymi.ray_backend.background import BackgroundCall
from raymi.ray_backend.worker_process import add_import_path, worker_resources

WorkerFunction = Callable[[dict[str, Any], Collectives, torch.device], dict[str, Any]]
"""Function of an importable module that takes a job, the group of all workers and a device."""


class WorkersFailed(Exception):
    """Failure of Ray Train or of its workers."""


def run_on_workers(
    function: WorkerFunction, job: dict[str, Any], num_workers: int, storage: str, *, use_gpu: bool
) -> dict[str, Any]:
    """Runs a function on the workers of Ray Train within a `ray_session`.

    Ray Train runs in a thread, so that the main thread handles Ctrl-C.

    Args:
        function: The function.
        job: Its first argument, of plain values.
        num_workers: Number of workers.
        storage: Folder for Ray Train's files.
        use_gpu: Whether each worker has a GPU.

    Returns:
        The result of rank 0, with the `niceness` of its process.

    Raises:
        WorkersFailed: The run failed.
    """
    training = BackgroundCall(
        "ray-train", lambda: _fit(function, job, num_workers, storage, use_gpu)
    )
    training.start()
    while training.is_alive():
        training.join(0.1)
    if training.error is not None:
        raise WorkersFailed(f"Ray Train: {training.error}".splitlines()[0]) from training.error
    assert training.result is not None
    return training.result


def _fit(
    function: WorkerFunction, job: dict[str, Any], num_workers: int, storage: str, use_gpu: bool
) -> dict[str, Any]:
    import ray.train
    from ray.train.torch import TorchTrainer

    def worker(config: dict[str, Any]) -> dict[str, Any]:
        return _run_function(function, config)

    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job, "import_path": os.getcwd()},
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker=worker_resources(1, use_gpu),
        ),
        run_config=ray.train.RunConfig(storage_path=storage),
    )
    return trainer.fit().return_value


def _run_function(function: WorkerFunction, config: dict[str, Any]) -> dict[str, Any]:
    """Runs the function in a worker."""
    import ray.train.torch

    add_import_path(config["import_path"])
    torch.set_num_threads(1)
    result = function(config["job"], ProcessGroup(), ray.train.torch.get_device())
    return {**result, "niceness": os.nice(0)}
