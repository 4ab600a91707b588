"""Alias of the registered version to use, with the reasons for the choice as its tags."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymi.errors import UserError
from raymi.selection.alias_update import AliasUpdate
from raymi.selection.candidate import Candidate
from raymi.tracking.logged import read_config
from raymi.tracking.model_card import write_card
from raymi.tracking.registry import (
    create_version,
    registered_name,
    versions_by_name,
    versions_of_model,
)
from raymi.tracking.store import as_tag


def set_alias(
    client: Any,
    model: Candidate,
    alias: str,
    reasons: Mapping[str, str],
    *,
    name: str | None = None,
    dry_run: bool = False,
) -> AliasUpdate:
    """Points an alias at the registered version of a model, which is created if missing.

    Args:
        client: of the store.
        model: to use.
        alias: in the registry.
        reasons: tags of the version; removed from all other versions.
        name: under which the model is registered; None: the known one, or the name of its run.
        dry_run: True: changes nothing.

    Raises:
        UserError: where the model has no registered name.
        Exception: any error of MLflow where the store does not answer.
    """
    known = next(iter(versions_of_model(client, model.model_id, model.run_id, name)), None)
    if known is None:
        name, version = name or _name_of_run(client, model), None
    else:
        name, version = known.name, str(known.version)
    before = _version_with(client, name, alias)
    prefix = f"raymi.{alias}."
    current_tags = {} if known is None else known.tags
    tags = {f"{prefix}{key}": as_tag(text) for key, text in reasons.items()}
    new = {key: text for key, text in tags.items() if current_tags.get(key) != text}
    changed = bool(new) or version != before
    if changed and not dry_run:
        if version is None:
            version = create_version(client, name, model.run_id, model.model_id)
            write_card(client, model.model_id)
        for key, text in new.items():
            client.set_model_version_tag(name, version, key, text)
        for other in versions_by_name(client, name):  # the alias may have been moved by hand
            for key in [] if str(other.version) == version else other.tags:
                if key.startswith(prefix):
                    client.delete_model_version_tag(name, other.version, key)
        # Last: until this call the same command repeats all steps.
        client.set_registered_model_alias(name, alias, version)
    return AliasUpdate(name, alias, version, before, changed, not dry_run)


def _name_of_run(client: Any, model: Candidate) -> str:
    with tempfile.TemporaryDirectory() as folder:
        config = read_config(client, model.run_id, Path(folder))
    if config is None:
        raise UserError(
            f"{model.name} has no version in the registry, and no run of raymi with a name for "
            "it: give registered_name=NAME"
        )
    return registered_name(config)


def _version_with(client: Any, name: str, alias: str) -> str | None:
    """Returns the version that has an alias; None: no version."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        # The codes of an unknown name and of an unknown alias.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
