"""Search for classifiers in MLflow: raymi's own, and exported programs of others."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from raymi.config import Config
from raymi.errors import UserError, did_you_mean
from raymi.evaluation.model_source import ModelSource, program_source, raymi_source
from raymi.evaluation.weight_files import read_weights
from raymi.tracking.faults import ELSEWHERE, remedy_of
from raymi.tracking.provenance import PROVENANCE
from raymi.tracking.registry import is_version_of
from raymi.tracking.store import connect, error_line, how_to_open, use_store, without_password

SCHEMES = ("models:/", "runs:/")
"""Prefixes of the address of a model in MLflow."""


class LoggedClassifier(NamedTuple):
    """Classifier in MLflow.

    Attributes:
        source: of the classifier.
        config: of the run of raymi that trained it; None: not known.
        run_id: of the run that logged it; None: logged outside of a run.
        model_id: of the logged model; None: not known.
        variant: its name in its run; None: the model of the run that was registered first.
    """

    source: ModelSource
    config: Config | None
    run_id: str | None
    model_id: str | None
    variant: str | None


def find_logged(address: str, uri: str) -> LoggedClassifier:
    """Finds the classifier at an address, without unpickling anything.

    A model of raymi is built from its safetensors, any other from its exported program.

    Args:
        address: `models:/name@alias`, `models:/name/3`, `models:/m-ID` or `runs:/ID/best`.
        uri: of the store.

    Raises:
        UserError: where the model is missing, the store does not answer, or only pickle could load
            the model.
    """
    try:
        client = connect(uri)
        with use_store(uri), tempfile.TemporaryDirectory() as folder:
            return _find(client, address, Path(folder))
    except UserError:
        raise
    except Exception as error:  # of the server, the network or the disk
        raise UserError(
            f"cannot get {address} from MLflow at {without_password(uri)} "
            f"({error_line(error, uri)}): {_remedy(address, uri, error)}"
        ) from None


def _find(client: Any, address: str, folder: Path) -> LoggedClassifier:
    import mlflow

    info = mlflow.models.get_model_info(address)
    metadata, flavors = info.metadata or {}, info.flavors
    files = Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(folder)))
    name = address.split(":/", 1)[1]
    architecture = metadata.get("architecture")
    weights = sorted((files / "extra_files").glob("*.safetensors"))
    config = None
    if architecture and weights:
        source = raymi_source(name, architecture, read_weights(weights[0]))
        config = read_config(client, info.run_id, folder)
    else:
        data = files / flavors.get("pytorch", {}).get("model_data", "data")
        programs = sorted(data.glob("*.pt2")) if data.is_dir() else []
        if not programs:
            raise UserError(
                f"{address} is not a network that torch exported (its flavors: "
                f"{', '.join(flavors) or 'none'}), and anything else would need pickle, which may "
                "run code: log it with mlflow.pytorch.log_model(..., "
                'serialization_format="pt2"), or write a function that loads it and give '
                "model=module:function"
            )
        source = program_source(name, programs[0].read_bytes())
    variant = _variant(client, info.model_id)
    return LoggedClassifier(source, config, info.run_id, info.model_id, variant)


def _variant(client: Any, model_id: str | None) -> str | None:
    if model_id is None:
        return None
    model = client.get_logged_model(model_id)
    versions = client.search_model_versions(f"run_id = '{model.source_run_id}'")
    first = min(versions, key=lambda one: one.creation_timestamp, default=None)
    return None if first is not None and is_version_of(first, model_id) else model.name


def read_config(client: Any, run_id: str | None, folder: Path) -> Config | None:
    """Returns the configuration of a run in MLflow.

    Args:
        client: of the store.
        run_id: of the run; None: no run.
        folder: for the download.

    Returns:
        None where the run is missing, or was made by an incompatible version of raymi: its
        classifiers can be evaluated nevertheless.
    """
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        path = client.download_artifacts(run_id, "config.json", str(folder))
        return Config.model_validate_json(Path(path).read_bytes())
    except (MlflowException, OSError, ValidationError):
        return None


def read_provenance(client: Any, run_id: str, folder: Path) -> dict[str, Any]:
    """Returns the provenance of a run in MLflow; empty where it is missing.

    Args:
        client: of the store.
        run_id: of the run.
        folder: for the download.
    """
    from mlflow.exceptions import MlflowException

    try:
        path = client.download_artifacts(run_id, PROVENANCE, str(folder))
        facts = json.loads(Path(path).read_text())
    except (MlflowException, OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _remedy(address: str, uri: str, error: Exception) -> str:
    """Returns the remedy, with the known models if the store answers."""
    from mlflow.exceptions import MlflowException

    missing = isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
    if not missing:
        return remedy_of(error, uri)
    remedy = f"look it up with {how_to_open(uri)}, or {ELSEWHERE}"
    try:
        with use_store(uri):
            known = [model.name for model in connect(uri).search_registered_models()]
    except MlflowException:
        return remedy
    name = address.split(":/", 1)[1].partition("@")[0].partition("/")[0]
    if not known or name in known or not address.startswith("models:/"):
        return remedy
    return f"{did_you_mean(name, known)} Or {remedy}"
