"""Ray Train for a run: its workers and their restarts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import ray.train
from ray.train.torch import TorchTrainer

from raymi.config import Config
from raymi.given import given_in
from raymi.overrides import flatten
from raymi.ray_backend.train_worker import train_worker
from raymi.ray_backend.worker_process import worker_resources
from raymi.runs.run_folder import RunFolder

RESIZE_SECONDS = 30.0  # between two checks of the cluster; Ray's own view is up to 20 s old


def fit(
    config: Config,
    folder: RunFolder,
    *,
    use_gpu: bool,
    import_path: str | None = None,
    deadline: float | None = None,
    stop_file: Path | None = None,
    test: bool = True,
    until: str = "classifier",
    callbacks: Sequence[Any] = (),
) -> dict[str, Any] | None:
    """Runs a configuration on Ray Train's workers; returns what `train_worker` does.

    Args:
        config: The resolved configuration.
        folder: Folder of the run with its configuration; the run continues from its checkpoint.
        use_gpu: Whether each worker has a GPU.
        import_path: Folder of the user's own modules; None: the current folder.
        deadline: Time of a stop request, in seconds since the epoch; None: no limit.
        stop_file: Further file whose existence requests a stop.
        test: Whether to evaluate on the test set at the end.
        until: Last phase of the run.
        callbacks: Further callbacks of Ray Train.
    """
    scaling = config.scaling
    all_callbacks: list[Any] = [*callbacks]
    if scaling.elastic:  # imports private names of Ray, on which no other run depends
        from raymi.ray_backend.elastic import FailuresWithoutProgress, SaveBeforeResize

        all_callbacks.append(SaveBeforeResize(folder))
        all_callbacks.append(FailuresWithoutProgress(folder, scaling.max_failures))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump_json(),
            "folder": str(folder.path),
            "import_path": import_path or os.getcwd(),
            "deadline": deadline,
            "stop_file": None if stop_file is None else str(stop_file),
            "test": test,
            "until": until,
            # as bytes: to load them may import modules from `import_path`
            "objects": cloudpickle.dumps(given_in(flatten(config.model_dump()).values())),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(
                (scaling.least_workers, scaling.most_workers)
                if scaling.elastic
                else scaling.most_workers
            ),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=use_gpu,
            resources_per_worker=worker_resources(scaling.cpus_per_worker, use_gpu),
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder.path),
            callbacks=all_callbacks,
            failure_config=ray.train.FailureConfig(
                max_failures=-1 if scaling.elastic else scaling.max_failures
            ),
        ),
    )
    return trainer.fit().return_value
