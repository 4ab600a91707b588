"""MLflow's registry: names and versions of logged models."""

from __future__ import annotations

from typing import Any

from raymi.config import Config
from raymi.tracking.store import current


def registered_name(config: Config) -> str:
    """The name in MLflow's registry under which the chosen model appears."""
    return config.tracking.registered_name or f"raymi-{config.data.name}"


def register_model(config: Config, client: Any, run_id: str, model_id: str) -> str:
    """A version in the registry for a logged model; the one that is there if it was registered
    before; its URI."""
    name = registered_name(config)
    for known in versions_of(client, model_id, run_id, name):
        return f"models:/{name}/{known.version}"
    return f"models:/{name}/{new_version(client, name, run_id, model_id)}"


def new_version(client: Any, name: str, run_id: str | None, model_id: str) -> str:
    """A further version in the registry for a logged model.

    Args: name, under which it is registered, made if it is not there; run_id, of the run that
        logged it, None: none did.
    Returns: its number.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with current(client.tracking_uri):
        made = client.create_model_version(name, f"models:/{model_id}", run_id, model_id=model_id)
    return str(made.version)


def versions_of(
    client: Any, model_id: str, run_id: str | None, name: str | None = None
) -> list[Any]:
    """The registered versions of a logged model, the first one first.

    Args: run_id, of the run that logged it, None: none did; name, under which they are registered,
        None: any.
    """
    found = client.search_model_versions(f"run_id = '{run_id}'" if run_id else None)
    ours = [one for one in found if is_version_of(one, model_id) and name in (None, one.name)]
    return sorted(ours, key=lambda one: one.creation_timestamp)


def versions_called(client: Any, name: str) -> list[Any]:
    """All versions of a registered name."""
    # A filter of MLflow's knows no way to write a name with the quotes that it is in.
    wanted = None if "'" in name else f"name = '{name}'"
    return [one for one in client.search_model_versions(wanted) if one.name == name]


def is_version_of(version: Any, model_id: str) -> bool:
    """Whether a registered version is a logged model: not every store says its id."""
    return version.model_id == model_id or version.source == f"models:/{model_id}"
