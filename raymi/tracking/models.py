"""Classifiers in MLflow: those of a run that were evaluated, loadable without pickle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from raymi.config import Config
from raymi.engine.run_folder import RunFolder
from raymi.errors import first_line
from raymi.tracking.datasets import datasets_of, link_datasets
from raymi.tracking.store import current

Event = Mapping[str, Any]


def registered_name(config: Config) -> str:
    """The name in MLflow's registry under which the chosen model appears."""
    return config.tracking.registered_name or f"raymi-{config.data.name}"


def log_model(
    config: Config, folder: RunFolder, client: Any, run_id: str, data: Event, evaluation: Event
) -> str:
    """Logs an evaluated classifier of a finished run: an exported torch program (no
    pickle) with its weights in safetensors beside it, and its own accuracies as metrics, linked to
    the test images.

    Args: data, from the journal's "start"; evaluation, the journal's event of this model.
    Returns: the model's id.
    """
    import mlflow

    # Leaving start_run marks the run as finished; the tracker decides when it is.
    with current(client.tracking_uri), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mlflow.start_run(run_id=run_id):
            model_id = _log_classifier(config, folder, data, evaluation["which"])
    client.update_run(run_id, status="RUNNING")
    values = {
        "test/clean_acc": evaluation["clean"],
        f"test/pgd{evaluation['attack']['steps']}_acc": evaluation["robust"],
        "test/num": float(evaluation["num"]),
    }
    (images,) = (one for one in datasets_of(data) if one.context == "test")
    (dataset,) = link_datasets(client, run_id, [images])
    # All log at the last epoch: the chosen one comes last and is what the run shows.
    for name, value in values.items():
        client.log_metric(
            run_id,
            name,
            value,
            timestamp=int(1000 * evaluation["time"]),
            step=evaluation["epoch"],
            model_id=model_id,
            dataset_name=dataset.name,
            dataset_digest=dataset.digest,
        )
    return model_id


def register_model(config: Config, client: Any, run_id: str, model_id: str, text: str) -> str:
    """A version in the registry for a logged model; the one that is there if it was registered
    before.

    Args: text, the version's description.
    Returns: its URI.
    """
    name = registered_name(config)
    for known in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        return f"models:/{name}/{known.version}"
    return f"models:/{name}/{new_version(client, name, run_id, model_id, text)}"


def new_version(client: Any, name: str, run_id: str | None, model_id: str, text: str) -> str:
    """A further version in the registry for a logged model.

    Args: name, under which it is registered, made if it is not there; run_id, of the run that
        logged it; text, the version's description.
    Returns: its number.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with current(client.tracking_uri):
        made = client.create_model_version(
            name, f"models:/{model_id}", run_id, description=text, model_id=model_id
        )
    return str(made.version)


def is_version_of(version: Any, model_id: str) -> bool:
    """Whether a registered version is a logged model: not every store says its id."""
    return version.model_id == model_id or version.source == f"models:/{model_id}"


def _log_classifier(config: Config, folder: RunFolder, data: Event, which: str) -> str:
    import mlflow
    import numpy as np
    from safetensors.torch import load_file

    from raymi.models import architecture, build_model

    weights = folder.weights(which)
    size = data["image_size"]
    built_as = architecture(
        config.model.name,
        num_classes=data["num_classes"],
        image_size=size,
        width=config.model.width,
        depth=config.model.depth,
    )
    model = build_model(**built_as, mean=data["mean"], std=data["std"]).eval()
    model.load_state_dict(load_file(weights))
    if ":" in config.model.name:
        _check_export(model, size)
    info = mlflow.pytorch.log_model(
        model,
        name=which,
        input_example=np.full((2, 3, size, size), 0.5, dtype=np.float32),
        extra_files=[str(weights)],
        pip_requirements=[
            f"torch=={version('torch').split('+')[0]}",
            f"mlflow=={version('mlflow')}",
        ],
        # With the safetensors beside it, all that the very same network is built from again.
        metadata={
            "classes": data["class_names"],
            "threat_model": config.attack.norm,
            "architecture": built_as,
        },
    )
    return info.model_id


class NotExportable(Exception):
    """A user's own network that torch.export cannot trace: only its weights go to MLflow."""


def _check_export(model: Any, size: int) -> None:
    import torch

    try:
        example = (torch.full((2, 3, size, size), 0.5),)
        torch.export.export(model, example, dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:
        raise NotExportable(first_line(error) or repr(error)) from None
