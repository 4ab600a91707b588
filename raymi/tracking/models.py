"""Logged models: the evaluated classifiers of a run, loadable without pickle."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from importlib.metadata import version
from typing import Any

from raymi.config import Config
from raymi.errors import first_line
from raymi.runs.record import is_averaged
from raymi.runs.run_folder import RunFolder
from raymi.tracking.datasets import dataset_splits, link_datasets
from raymi.tracking.metric_names import ROBUST, rounded
from raymi.tracking.store import use_store

Event = Mapping[str, Any]

_one_export = threading.Lock()
"""torch.export turns oneDNN off in the whole process while it traces. Of two threads that trace at
the same time, the second would find it off and leave it off."""


def metric_times(evaluations: Mapping[str, Event]) -> dict[str, float]:
    """Returns the times at which accuracies of models are logged, the chosen model last.

    MLflow shows the newest value of a run's metric, and stores a point with the same time only
    once. So the chosen model has the latest time, and models of one epoch share a time: their
    accuracies are one point of the run.

    Args:
        evaluations: events of the journal by model.

    Returns:
        Seconds since the epoch by model.
    """

    def group(which: str) -> tuple[int, bool]:
        return evaluations[which]["of_epoch"], is_averaged(which)

    order = sorted(evaluations, key=lambda which: evaluations[which]["chosen"])
    latest: dict[tuple[int, bool], float] = {}
    for which in order:
        time = evaluations[which]["time"]
        latest[group(which)] = max(time, latest.get(group(which), time))
    others = [time for key, time in latest.items() if key != group(order[-1])]
    if others:
        latest[group(order[-1])] = max(latest[group(order[-1])], max(others) + 0.001)
    return {which: latest[group(which)] for which in order}


def log_model(
    config: Config,
    folder: RunFolder,
    client: Any,
    run_id: str,
    data: Event,
    evaluation: Event,
    tags: Mapping[str, str],
) -> str:
    """Logs an evaluated classifier of a finished run: an exported program and its safetensors.

    Its accuracies are metrics, linked to the test images. An incomplete earlier attempt is
    completed. MLflow may change the status of the run: the caller restores it.

    Args:
        config: of the run.
        folder: of the run.
        client: of the store.
        run_id: of the run.
        data: of the journal's "start".
        evaluation: event of the journal.
        tags: of the model, such as its user: MLflow's own tags name the login of the server and
            the path of this program.

    Returns:
        The model's id.

    Raises:
        NotExportable: where torch cannot export a user's network.
        Exception: any error of MLflow where the store does not answer.
    """
    import mlflow

    which = evaluation["which"]
    model_id = _complete_model(client, run_id, which)
    if model_id is None:
        with use_store(client.tracking_uri), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with mlflow.start_run(run_id=run_id):  # sets the status to running, then to finished
                with _one_export:
                    model_id = _export(config, folder, data, which, tags)
    log_accuracies(client, run_id, data, evaluation, model_id)
    return model_id


def log_accuracies(
    client: Any, run_id: str, data: Event, evaluation: Event, model_id: str | None = None
) -> None:
    """Logs the accuracies of an evaluated classifier, linked to the test images.

    Args:
        client: of the store.
        run_id: of the run.
        data: of the journal's "start".
        evaluation: event of the journal.
        model_id: of the logged model; None: MLflow has none, and the run gets them.

    Raises:
        Exception: any error of MLflow where the store does not answer.
    """
    values = {
        "test/clean_acc": evaluation["clean"],
        ROBUST: evaluation["robust"],
        f"test/pgd{evaluation['attack']['steps']}_acc": evaluation["robust"],
        "test/num": evaluation["num"],
    }
    (images,) = (one for one in dataset_splits(data) if one.context == "test")
    (dataset,) = link_datasets(client, run_id, [images])
    for name, value in values.items():
        client.log_metric(
            run_id,
            name,
            rounded(value),
            timestamp=round(1000 * evaluation["time"]),
            step=evaluation["epoch"],
            model_id=model_id,
            dataset_name=dataset.name,
            dataset_digest=dataset.digest,
        )


def _complete_model(client: Any, run_id: str, name: str) -> str | None:
    """Returns the id of a run's model that has its files; deletes incomplete ones of the name."""
    from mlflow.entities import LoggedModelStatus

    experiment = client.get_run(run_id).info.experiment_id
    condition = f"source_run_id = '{run_id}' AND name = '{name}'"
    complete = None
    for model in client.search_logged_models([experiment], condition):
        if model.status == LoggedModelStatus.READY:
            complete = model.model_id
        else:
            client.delete_logged_model(model.model_id)
    return complete


def _export(
    config: Config, folder: RunFolder, data: Event, which: str, tags: Mapping[str, str]
) -> str:
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
        activation=config.model.activation,
    )
    model = build_model(**built_as, mean=data["mean"], std=data["std"]).eval()
    model.load_state_dict(read_weights_file(weights).tensors)
    if ":" in config.model.name:
        _check_export(model, size)
    info = mlflow.pytorch.log_model(
        model,
        name=which,
        tags={"mlflow.user": "unknown", **tags},
        input_example=np.full((2, 3, size, size), 0.5, dtype=np.float32),
        serialization_format="pt2",  # MLflow's default may be pickle
        extra_files=[str(weights)],
        pip_requirements=[
            f"torch=={version('torch').split('+')[0]}",
            f"mlflow=={version('mlflow')}",
        ],
        # With the safetensors, enough to build the same network.
        metadata={
            "classes": data["class_names"],
            "threat_model": config.attack.norm,
            "architecture": built_as,
        },
    )
    return info.model_id


class NotExportable(Exception):
    """Error of a user's network that torch.export cannot trace for any number of images."""


def _check_export(model: Any, size: int) -> None:
    import torch

    def images(num: int) -> Any:
        return torch.full((num, 3, size, size), 0.5)

    try:
        with redirect_stderr(io.StringIO()):  # on failure torch prints pages of a graph
            traced = torch.export.export(
                model, (images(2),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
            )
        for num in (1, 3):  # AUTO fixes the batch size if the network's code depends on it
            traced.module()(images(num))
    except Exception as error:
        raise NotExportable(first_line(error) or repr(error)) from None
