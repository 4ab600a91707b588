"""Where MLflow is: the server that the user names, or a SQLite file that needs no set-up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def tracking_uri(home: Path) -> str:
    """$MLFLOW_TRACKING_URI, or a SQLite file `mlflow.db` in `home`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"


def how_to_open(uri: str) -> str:
    """The command that shows the MLflow UI of a store, or its address."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def connect(home: Path) -> Any:
    """An `MlflowClient` of the store; points MLflow's own functions at it, too."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A server that is away must not hold us for minutes: we ask again ourselves.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    import mlflow

    uri = tracking_uri(home)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def experiment_id(client: Any, name: str, home: Path) -> str:
    """The experiment called `name`, made if it is not there.

    A local store keeps its artifacts in `home`/mlruns, whatever the current folder is.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = client.tracking_uri.startswith("sqlite:")
        location = (home / "mlruns").as_uri() if local else None
        return client.create_experiment(name, artifact_location=location)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id
