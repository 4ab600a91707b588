"""Classifiers in MLflow: those of a run that were evaluated, loadable without pickle."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from importlib.metadata import version
from typing import Any

from raymi.config import Config
from raymi.errors import first_line
from raymi.runs.record import is_averaged
from raymi.runs.run_folder import RunFolder
from raymi.tracking.datasets import datasets_of, link_datasets
from raymi.tracking.store import current

Event = Mapping[str, Any]


def times_of(evaluations: Mapping[str, Event]) -> dict[str, float]:
    """Returns the times at which the accuracies of models are logged, the chosen model last.

    MLflow shows a run's newest value of a metric, and takes a point with the same time for the one
    that it has. So the chosen model has the latest time, and models of one epoch have one time:
    their accuracies are one point of the run.

    Args:
        evaluations: events of the journal, by the name of the model.

    Returns:
        Seconds since the epoch, by the name of the model.
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
    """Logs an evaluated classifier of a finished run: an exported torch program, without pickle.

    Its weights are beside it in safetensors. Its own accuracies are metrics, linked to the test
    images. What an earlier attempt has left half done is completed. The status of the run may be
    another one afterwards.

    Args:
        data: from the journal's "start".
        evaluation: the journal's event of this model.
        tags: of the model, such as its user: MLflow's own are the name that logs in to the server
            and the path of this program.

    Returns:
        The model's id.
    """
    which = evaluation["which"]
    model_id = _logged_before(client, run_id, which) or _log(
        config, folder, client, run_id, data, which, tags
    )
    values = {
        "test/clean_acc": evaluation["clean"],
        f"test/pgd{evaluation['attack']['steps']}_acc": evaluation["robust"],
        "test/num": float(evaluation["num"]),
    }
    (images,) = (one for one in datasets_of(data) if one.context == "test")
    (dataset,) = link_datasets(client, run_id, [images])
    for name, value in values.items():
        client.log_metric(
            run_id,
            name,
            value,
            timestamp=round(1000 * evaluation["time"]),
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
    config: Config,
    folder: RunFolder,
    client: Any,
    run_id: str,
    data: Event,
    which: str,
    tags: Mapping[str, str],
) -> str:
    import mlflow

    # start_run marks the run as running, and as finished in the end: the caller corrects that.
    with current(client.tracking_uri), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mlflow.start_run(run_id=run_id):
            return _log_classifier(config, folder, data, which, tags)


def _log_classifier(
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
