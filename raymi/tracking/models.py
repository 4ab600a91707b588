"""Classifiers in MLflow: those of a run that were evaluated, loadable without pickle."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from importlib.metadata import version
from typing import Any

from raymi.config import Config
from raymi.engine.run_folder import RunFolder
from raymi.errors import first_line
from raymi.tracking.datasets import datasets_of, link_datasets
from raymi.tracking.store import current

Event = Mapping[str, Any]


def log_model(
    config: Config, folder: RunFolder, client: Any, run_id: str, data: Event, evaluation: Event
) -> str:
    """Logs an evaluated classifier of a finished run: an exported torch program (no
    pickle) with its weights in safetensors beside it, and its own accuracies as metrics, linked to
    the test images. Where an earlier attempt was cut off, that is brought to its end.

    Args: data, from the journal's "start"; evaluation, the journal's event of this model.
    Returns: the model's id.
    """
    which = evaluation["which"]
    model_id = _logged_before(client, run_id, which) or _log(
        config, folder, client, run_id, data, which
    )
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


def _logged_before(client: Any, run_id: str, name: str) -> str | None:
    """The id of a run's model that is there with its files; what is left of attempts that were cut
    off goes."""
    from mlflow.entities import LoggedModelStatus

    place = client.get_run(run_id).info.experiment_id
    ours = f"source_run_id = '{run_id}' AND name = '{name}'"
    whole = None
    for model in client.search_logged_models([place], ours):
        if model.status == LoggedModelStatus.READY:
            whole = model.model_id
        else:
            client.delete_logged_model(model.model_id)
    return whole


def _log(
    config: Config, folder: RunFolder, client: Any, run_id: str, data: Event, which: str
) -> str:
    import mlflow

    # Leaving start_run marks the run as finished; the tracker decides when it is.
    with current(client.tracking_uri), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mlflow.start_run(run_id=run_id):
            model_id = _log_classifier(config, folder, data, which)
    client.update_run(run_id, status="RUNNING")
    return model_id


def _log_classifier(config: Config, folder: RunFolder, data: Event, which: str) -> str:
    import mlflow
    import numpy as np

    from raymi.models import architecture, build_model
    from raymi.weights import read_weights_file

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
    model.load_state_dict(read_weights_file(weights).tensors)
    if ":" in config.model.name:
        _check_export(model, size)
    info = mlflow.pytorch.log_model(
        model,
        name=which,
        input_example=np.full((2, 3, size, size), 0.5, dtype=np.float32),
        serialization_format="pt2",  # MLflow's own choice depends on the store, and may be pickle
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
    """A user's own network that torch.export cannot trace, or of two images only: only its weights
    go to MLflow."""


def _check_export(model: Any, size: int) -> None:
    import torch

    def images(num: int) -> Any:
        return torch.full((num, 3, size, size), 0.5)

    try:
        with redirect_stderr(io.StringIO()):  # where it fails, it prints the graph: pages of it
            traced = torch.export.export(
                model, (images(2),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
            )
        for num in (1, 3):  # AUTO freezes a batch that the network's code counts
            traced.module()(images(num))
    except Exception as error:
        raise NotExportable(first_line(error) or repr(error)) from None
