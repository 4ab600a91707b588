"""Reports in MLflow: accuracies that it has of a model, and a report among a run's artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raymi.errors import UserError
from raymi.selection.candidate import Candidate
from raymi.tracking import store
from raymi.tracking.candidates import candidates_of
from raymi.tracking.left_running import close_left_running

_FOLDER = "report"


def find_numbers(uri: str, model_id: str) -> list[Candidate]:
    """What a logged model was measured with, a candidate for each question.

    Raises: UserError where the store is not there; whatever MLflow raises where it does not answer.
    """
    return candidates_of(_client(uri), model_id)


def log_report(uri: str, run_id: str, name: str, files: Sequence[Path]) -> bool:
    """Puts a report among the artifacts of a run, as `report/NAME/...`, in place of the one of that
    name that is there.

    Args: files, all in one folder.
    Returns: whether MLflow still has the run.
    Raises: UserError where the store is not there; whatever MLflow raises where it does not answer.
    """
    client = _client(uri)
    if not store.has_run(client, run_id):
        return False
    with suppress(Exception):  # of other runs: this one gets its report all the same
        close_left_running(client, client.get_run(run_id).info.experiment_id)
    place = f"{_FOLDER}/{name}"
    for file in files:
        client.log_artifact(run_id, str(file), place)
    names = {file.name for file in files}
    there = [one.path for one in client.list_artifacts(run_id, place)]
    _remove(client, uri, run_id, [path for path in there if Path(path).name not in names])
    return True


def _remove(client: Any, uri: str, run_id: str, paths: Sequence[str]) -> None:
    """Pictures of an earlier report that this one has not."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if paths:
        with store.current(uri):
            artifacts = get_artifact_repository(client.get_run(run_id).info.artifact_uri)
            for path in paths:
                artifacts.delete_artifacts(path)


def _client(uri: str) -> Any:
    if (file := store.missing_file(uri)) is not None:
        raise UserError(f"there is no MLflow store {file}: put it back where it was")
    return store.connect(uri)
