"""Classifiers in MLflow: the best and the last one of a run, loadable without pickle."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from typing import Any

from raymi.config import Config
from raymi.engine.journal import JournalReader
from raymi.engine.run_folder import RunFolder

Event = dict[str, Any]


def registered_name(config: Config) -> str:
    """The name in MLflow's registry under which the best model appears."""
    return config.tracking.registered_name or f"raymi-{config.data.name}"


def log_models(
    config: Config, folder: RunFolder, client: Any, run_id: str | None
) -> dict[str, str]:
    """Logs the best and the last classifier of a finished run, and registers the best.

    Each is an exported torch program (no pickle) with its weights in safetensors beside it, and
    carries its own accuracies as metrics.

    Returns: {"best": URI of the registered version, "last": URI of the logged model}.
    """
    import mlflow

    events = JournalReader(folder.journal).new_events()
    data = next(e["data"] for e in reversed(events) if e["kind"] == "start")
    evaluations = {e["which"]: e for e in events if e["kind"] == "evaluation"}
    uris: dict[str, str] = {}
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for which in ("last", "best"):
            info = _log_model(config, folder, data, which)
            _log_accuracies(client, run_id, info.model_id, evaluations[which])
            uris[which] = f"models:/{info.model_id}"
        name = registered_name(config)
        known = mlflow.register_model(uris["best"], name, await_registration_for=60)
        uris["best"] = f"models:/{name}/{known.version}"
    # start_run marks the run as finished on leaving; the tracker decides that
    client.update_run(run_id, status="RUNNING")
    return uris


def _log_model(config: Config, folder: RunFolder, data: Event, which: str) -> Any:
    import mlflow
    import numpy as np
    from safetensors.torch import load_file

    from raymi.models import build_model

    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    weights = folder.weights(which)
    model = build_model(
        config.model.name,
        num_classes=data["num_classes"],
        image_size=data["image_size"],
        mean=data["mean"],
        std=data["std"],
        width=config.model.width,
        depth=config.model.depth,
    ).eval()
    model.load_state_dict(load_file(weights))
    size = data["image_size"]
    return mlflow.pytorch.log_model(
        model,
        name=which,
        input_example=np.full((2, 3, size, size), 0.5, dtype=np.float32),
        extra_files=[str(weights)],
        pip_requirements=[
            f"torch=={version('torch').split('+')[0]}",
            f"mlflow=={version('mlflow')}",
        ],
        metadata={"classes": data["class_names"], "threat_model": config.attack.norm},
    )


def _log_accuracies(client: Any, run_id: str | None, model_id: str, evaluation: Event) -> None:
    robust = f"test/pgd{evaluation['attack']['steps']}_acc"
    for name, value in (("test/clean_acc", evaluation["clean"]), (robust, evaluation["robust"])):
        client.log_metric(run_id, name, value, step=evaluation["of_epoch"], model_id=model_id)
