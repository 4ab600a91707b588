"""MLflow's model registry: names and versions of logged models."""

from __future__ import annotations

import json
from typing import Any

from raymi.config import Config
from raymi.tracking.store import use_store

_VERSIONS = "mlflow.modelVersions"
_DESCRIPTION = (
    "Image classifiers trained by raymi, one version for each run, with its model card. "
    "`python -m raymi.select` sets the alias `champion` of the version to use, and tags with the "
    "reasons."
)


def registered_name(config: Config) -> str:
    """Returns the name in the registry of the chosen models of a configuration."""
    return config.tracking.registered_name or f"raymi-{config.data.plain_name}"


def register_model(config: Config, client: Any, run_id: str, model_id: str) -> str:
    """Registers a logged model unless it is registered; returns the URI of its version."""
    name = registered_name(config)
    for known in versions_of_model(client, model_id, run_id, name):
        return f"models:/{name}/{known.version}"
    return f"models:/{name}/{create_version(client, name, run_id, model_id)}"


def create_version(client: Any, name: str, run_id: str | None, model_id: str) -> str:
    """Registers a logged model under a name, which is created if missing.

    Args:
        client: of the store.
        name: of the registered model.
        run_id: of the run that logged the model; None: logged outside of a run.
        model_id: of the logged model.

    Returns:
        The number of the version.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with use_store(client.tracking_uri):
        entity = client.create_model_version(name, f"models:/{model_id}", run_id, model_id=model_id)
    version = str(entity.version)
    _link_version(client, model_id, name, version)
    return version


def _link_version(client: Any, model_id: str, name: str, version: str) -> None:
    """Sets the tag by which MLflow's UI shows a version beside its model and run.

    An MLflow server sets it itself, a local store does not.
    """
    tags = client.get_logged_model(model_id).tags
    known = json.loads(tags.get(_VERSIONS, "[]"))
    if (name, version) not in [(one["name"], str(one["version"])) for one in known]:
        linked = json.dumps([*known, {"name": name, "version": version}])
        client.set_logged_model_tags(model_id, {_VERSIONS: linked})


def versions_of_model(
    client: Any, model_id: str, run_id: str | None, name: str | None = None
) -> list[Any]:
    """Returns the registered versions of a logged model, oldest first.

    Args:
        client: of the store.
        model_id: of the logged model.
        run_id: of the run that logged it; None: logged outside of a run.
        name: of the registered model; None: any.
    """
    versions = client.search_model_versions(f"run_id = '{run_id}'" if run_id else None)
    matching = [
        one for one in versions if is_version_of(one, model_id) and name in (None, one.name)
    ]
    return sorted(matching, key=lambda one: one.creation_timestamp)


def versions_by_name(client: Any, name: str) -> list[Any]:
    """Returns all versions of a registered model."""
    # MLflow's filters cannot express a name with a quote.
    condition = None if "'" in name else f"name = '{name}'"
    return [one for one in client.search_model_versions(condition) if one.name == name]


def is_version_of(version: Any, model_id: str) -> bool:
    """Returns whether a registered version is a logged model; some stores return no model id."""
    return version.model_id == model_id or version.source == f"models:/{model_id}"
