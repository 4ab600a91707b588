"""The alias of the registered version to use, and the reasons for it as tags of that version."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymi.errors import UserError
from raymi.selection.candidate import Candidate
from raymi.tracking.logged import config_of
from raymi.tracking.model_card import write_card
from raymi.tracking.registry import new_version, registered_name, versions_called, versions_of
from raymi.tracking.store import as_tag


@dataclass(frozen=True)
class Pointed:
    """An alias and the version that it points at: the registered name; the version, None where it
    is not registered yet; the version before, None: there was none; whether the store says anything
    else than before."""

    name: str
    alias: str
    version: str | None
    before: str | None
    changed: bool


def point_alias(
    client: Any,
    model: Candidate,
    alias: str,
    reasons: Mapping[str, str],
    *,
    name: str | None = None,
    dry_run: bool = False,
) -> Pointed:
    """Points an alias at the registered version of a model, which is made where it has none. What
    is so already stays as it is.

    Args: client; model; alias; reasons, tags of the version, taken away from all others;
        name, under which it is registered, None: where it is, or as its run says; dry_run, True:
        only looks.
    Raises: UserError where it has no registered name; whatever MLflow raises where the store does
        not answer.
    """
    known = next(iter(versions_of(client, model.model_id, model.run_id, name)), None)
    if known is None:
        name, version = name or _name_of(client, model), None
    else:
        name, version = known.name, str(known.version)
    tags = {f"raymi.{alias}.{key}": as_tag(text) for key, text in reasons.items()}
    before = _holder(client, name, alias)
    told = {} if known is None else known.tags
    new = {key: text for key, text in tags.items() if told.get(key) != text}
    pointed = Pointed(name, alias, version, before, bool(new) or version != before)
    if dry_run or not pointed.changed:
        return pointed
    if version is None:
        version = new_version(client, name, model.run_id, model.model_id)
        write_card(client, model.model_id)
    for key, text in new.items():
        client.set_model_version_tag(name, version, key, text)
    for other in versions_called(client, name):  # somebody may have moved the alias by hand
        for key in [] if str(other.version) == version else other.tags:
            if key.startswith(f"raymi.{alias}."):
                client.delete_model_version_tag(name, other.version, key)
    # Last: as long as it is not done, the same command does all of it again.
    client.set_registered_model_alias(name, alias, version)
    return Pointed(name, alias, version, before, True)


def _name_of(client: Any, model: Candidate) -> str:
    with tempfile.TemporaryDirectory() as place:
        config = config_of(client, model.run_id, Path(place))
    if config is None:
        raise UserError(
            f"{model.name} has no version in the registry, and no run of raymi says how to call "
            "it: give registered_name=NAME"
        )
    return registered_name(config)


def _holder(client: Any, name: str, alias: str) -> str | None:
    """The version that an alias points at."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        # Of a name that is not there, and of an alias that it does not have.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
