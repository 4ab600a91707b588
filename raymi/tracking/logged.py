"""Finds classifiers in MLflow: those that raymi logged, and others' that torch exported."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from raymi.config import Config
from raymi.errors import UserError, did_you_mean
from raymi.evaluation.model_source import ModelSource, program_source, raymi_source
from raymi.evaluation.weight_files import read_weights
from raymi.tracking.faults import ELSEWHERE, remedy_of
from raymi.tracking.registry import is_version_of
from raymi.tracking.store import connect, current, how_to_open, in_one_line, without_password

SCHEMES = ("models:/", "runs:/")
"""How the address of a model in MLflow begins."""


class Logged(NamedTuple):
    """A classifier in MLflow; `config` of the run of raymi that trained it, None where it is not
    known; `run_id` and `model_id`, None where it has none; `variant`, its name in its run, None if
    it is the one of the run that was registered first."""

    source: ModelSource
    config: Config | None
    run_id: str | None
    model_id: str | None
    variant: str | None


def find_logged(address: str, uri: str) -> Logged:
    """The classifier at an address such as `models:/name@alias`, `models:/name/3`, `models:/m-ID`
    or `runs:/ID/best`.

    Of a model that raymi logged, the weights in safetensors are taken, of another one the exported
    program. Nothing is unpickled.

    Args: address; uri, of the store.
    Raises: UserError where there is no such model, the store does not answer, or the model could
        only be loaded with pickle.
    """
    try:
        client = connect(uri)
        with current(uri), tempfile.TemporaryDirectory() as place:
            return _found(client, address, Path(place))
    except UserError:
        raise
    except Exception as error:  # whatever the server, the network or the disk does
        place = f"cannot get {address} from MLflow at {without_password(uri)}"
        problem = in_one_line(error, uri)
        raise UserError(f"{place} ({problem}): {_remedy(address, uri, error)}") from None


def _found(client: Any, address: str, place: Path) -> Logged:
    import mlflow

    info = mlflow.models.get_model_info(address)
    metadata, flavors = info.metadata or {}, info.flavors
    files = Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(place)))
    name = address.split(":/", 1)[1]
    architecture = metadata.get("architecture")
    weights = sorted((files / "extra_files").glob("*.safetensors"))
    if architecture and weights:
        source = raymi_source(name, architecture, read_weights(weights[0]))
        variant = _variant(client, info.model_id)
        config = config_of(client, info.run_id, place)
        return Logged(source, config, info.run_id, info.model_id, variant)
    data = files / flavors.get("pytorch", {}).get("model_data", "data")
    programs = sorted(data.glob("*.pt2")) if data.is_dir() else []
    if not programs:
        kept = ", ".join(flavors) or "none"
        raise UserError(
            f"{address} is not a network that torch exported (its flavors: {kept}), and anything "
            "else would need pickle, which may run code: log it with mlflow.pytorch.log_model(..., "
            'serialization_format="pt2"), or write a function that loads it and give '
            "model=module:function"
        )
    source = program_source(name, programs[0].read_bytes())
    variant = _variant(client, info.model_id)
    return Logged(source, None, info.run_id, info.model_id, variant)


def _variant(client: Any, model_id: str | None) -> str | None:
    if model_id is None:
        return None
    model = client.get_logged_model(model_id)
    versions = client.search_model_versions(f"run_id = '{model.source_run_id}'")
    first = min(versions, key=lambda one: one.creation_timestamp, default=None)
    return None if first is not None and is_version_of(first, model_id) else model.name


def config_of(client: Any, run_id: str | None, place: Path) -> Config | None:
    """Of the run that logged a model; None where the run is gone, or of another version of
    raymi: the classifier can be evaluated all the same."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        path = client.download_artifacts(run_id, "config.json", str(place))
        return Config.model_validate_json(Path(path).read_bytes())
    except (MlflowException, OSError, ValidationError):
        return None


def _remedy(address: str, uri: str, error: Exception) -> str:
    """Returns the remedy, with the known models if the store answers."""
    from mlflow.exceptions import MlflowException

    missing = isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
    if not missing:
        return remedy_of(error, uri)
    look = f"look it up with {how_to_open(uri)}, or {ELSEWHERE}"
    try:
        with current(uri):
            known = [model.name for model in connect(uri).search_registered_models()]
    except MlflowException:
        return look
    wanted = address.split(":/", 1)[1].partition("@")[0].partition("/")[0]
    if not known or wanted in known or not address.startswith("models:/"):
        return look
    return f"{did_you_mean(wanted, known)} Or {look}"
