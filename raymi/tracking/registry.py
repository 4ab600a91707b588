"""MLflow's registry: names and versions of logged models."""

from __future__ import annotations

import json
from typing import Any

from raymi.config import Config
from raymi.tracking.store import current

_VERSIONS = "mlflow.modelVersions"
_ABOUT = """Image classifiers trained by raymi, a version for each run, with its model card. The
one to use has the alias `champion` once `python -m raymi.select` has set it; its tags say why it
was chosen."""


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
        client.create_registered_model(name, description=" ".join(_ABOUT.split()))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with current(client.tracking_uri):
        made = client.create_model_version(name, f"models:/{model_id}", run_id, model_id=model_id)
    _show_version(client, model_id, {"name": name, "version": str(made.version)})
    return str(made.version)


def _show_version(client: Any, model_id: str, version: dict[str, str]) -> None:
    """Tells a logged model its version, without which MLflow's UI does not show it beside the model
    and its run. A server of MLflow does so itself, a local store does not."""
    tags = client.get_logged_model(model_id).tags
    known = json.loads(tags.get(_VERSIONS, "[]"))
    told = [(one["name"], str(one["version"])) for one in known]  # a server writes a number
    if (version["name"], version["version"]) not in told:
        client.set_logged_model_tags(model_id, {_VERSIONS: json.dumps([*known, version])})


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
