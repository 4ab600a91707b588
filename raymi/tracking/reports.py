"""Reports among the artifacts of runs in MLflow, and accuracies for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raymi.selection.candidate import Candidate
from raymi.tracking import store
from raymi.tracking.candidates import candidates_of_model
from raymi.tracking.stale_runs import close_stale_runs

_FOLDER = "report"
_REMEDY = "restore it there"


def find_numbers(uri: str, model_id: str) -> list[Candidate]:
    """Returns the accuracies of a logged model, one candidate for each protocol.

    Raises:
        UserError: where the store is missing.
        Exception: any error of MLflow where the store does not answer.
    """
    store.require_store(uri, _REMEDY)
    client = store.connect(uri)
    if not store.has_model(client, model_id):
        return []
    model = client.get_logged_model(model_id)
    run = client.get_run(model.source_run_id) if model.source_run_id else None
    return list(candidates_of_model(model, run))


def log_report(uri: str, run_id: str, name: str, files: Sequence[Path]) -> bool:
    """Logs a report as artifacts `report/NAME/...` of a run; replaces an earlier one of the name.

    Args:
        uri: of the store.
        run_id: of the run.
        name: of the report.
        files: of one folder.

    Returns:
        Whether MLflow has the run.

    Raises:
        UserError: where the store is missing.
        Exception: any error of MLflow where the store does not answer.
    """
    store.require_store(uri, _REMEDY)
    client = store.connect(uri)
    if not store.has_run(client, run_id):
        return False
    with suppress(Exception):  # of other runs; this one gets its report
        close_stale_runs(client, client.get_run(run_id).info.experiment_id)
    folder = f"{_FOLDER}/{name}"
    for file in files:
        client.log_artifact(run_id, str(file), folder)
    names = {file.name for file in files}
    paths = [one.path for one in client.list_artifacts(run_id, folder)]
    _delete_artifacts(client, run_id, [path for path in paths if Path(path).name not in names])
    return True


def _delete_artifacts(client: Any, run_id: str, paths: Sequence[str]) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if paths:
        with store.use_store(client.tracking_uri):
            artifacts = get_artifact_repository(client.get_run(run_id).info.artifact_uri)
            for path in paths:
                artifacts.delete_artifacts(path)
