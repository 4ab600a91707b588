"""Finds the classifier that `model=...` of a command names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymi.config import Config
from raymi.errors import UserError, did_you_mean
from raymi.evaluation.model_source import (
    ModelSource,
    architecture_text,
    expected_state,
    function_source,
    program_source,
    raymi_source,
)
from raymi.evaluation.weight_files import SUFFIXES, read_weights, read_weights_for, suffix_of
from raymi.formatting import shown
from raymi.local_paths import address_problem
from raymi.models import architecture
from raymi.runs.events import MODELS
from raymi.runs.record import data_of, read_record, read_tracking
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import find_run, home_folder
from raymi.tracking.logged import SCHEMES, find_logged
from raymi.tracking.store import require_store, tracking_uri, with_login

FORMS = (
    "the name or folder of a run; a file of weights (.safetensors, .pt, .pth, .ckpt) or an "
    "exported program (.pt2); models:/name@alias, models:/name/3 or runs:/ID/name in MLflow; or "
    "module:function, which returns a network of raw images in [0, 1]"
)
"""Accepted values of `model=`, for messages."""

_PROGRAM = ".pt2"


@dataclass(frozen=True)
class LocatedModel:
    """Model source and its origin.

    Args:
        source: of the classifier.
        config: of the run of raymi that trained it; None: unknown.
        folder: of that run, if it is on this disk.
        uri: address of the MLflow store of the model or its run; it may hold a password.
        run_id: MLflow run that trained it.
        model_id: logged model in MLflow.
        variant: one of its run's models; None: the chosen one.
    """

    source: ModelSource
    config: Config | None = None
    folder: RunFolder | None = None
    uri: str | None = None
    run_id: str | None = None
    model_id: str | None = None
    variant: str | None = None


def needs_data(name: str, config: Config) -> bool:
    """Returns whether `find_model_source` needs the data: for functions and bare weights.

    Raises:
        UserError: nothing has that name.
    """
    if name.startswith(SCHEMES):
        return False
    place = locate(name, config)
    if isinstance(place, Path):
        return not _is_program(place) and run_of(place) is None
    return place is None


def find_model_source(
    name: str,
    config: Config,
    *,
    which: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> LocatedModel:
    """Finds a classifier by name, see `FORMS`.

    Search order: MLflow, if the name begins with models:/ or runs:/; a file; a run; a function.

    Args:
        name: value of `model=`.
        config: `out` is the folder of runs, `model.*` the architecture of bare weights.
        which: a model of a run or a checkpoint, or the path of a state dict in another file.
            None: of a run the chosen model (the highest robust validation accuracy, or best), of a
            checkpoint the last.
        num_classes: K of the data; required where `needs_data` says so, else ignored.
        image_size: pixels of the data, likewise.

    Raises:
        UserError: no classifier has that name, or it cannot be read.
        ValueError: the data are needed and not given.
    """
    if name.startswith(SCHEMES):
        _refuse_choice(name, which)
        uri = tracking_uri(home_folder())
        require_store(
            uri,
            "set MLFLOW_TRACKING_URI to the store with the model, or go to the folder in which it "
            "was trained",
        )
        logged = find_logged(name, uri)
        return LocatedModel(
            logged.source,
            logged.config,
            uri=uri,
            run_id=logged.run_id,
            model_id=logged.model_id,
            variant=logged.variant,
        )
    place = locate(name, config)
    if isinstance(place, RunFolder):
        return _in_run(place, weights_of_run(place, which), None)
    if place is not None and _is_program(place):
        _refuse_choice(name, which)
        return LocatedModel(program_source(place.stem, place.read_bytes()))
    if place is not None and (folder := run_of(place)) is not None:
        return _in_run(folder, place, which)
    if num_classes is None or image_size is None:
        raise ValueError(f"{name} is built for a data set: give num_classes and image_size")
    if place is None:
        _refuse_choice(name, which)
        return LocatedModel(function_source(name, num_classes, image_size))
    built_as = _architecture(config, {"num_classes": num_classes, "image_size": image_size})
    state = read_weights_for(place, expected_state(built_as), architecture_text(built_as), which)
    stem = place.name.removesuffix(suffix_of(place) or "")
    return LocatedModel(raymi_source(stem if which is None else f"{stem}-{which}", built_as, state))


def tracked(folder: RunFolder) -> dict[str, Any]:
    """Returns the location of a run in MLflow; empty if it was not tracked.

    Returns:
        `uri` of the store, which may hold the user's password; `run_id`, None before the first
        delivery; `model_ids` by model.

    Raises:
        UserError: the file with the location is damaged.
    """
    delivered = read_tracking(folder)
    return {**delivered, "uri": with_login(delivered["uri"])} if delivered else {}


def locate(
    name: str, config: Config, takes: str = f"model= takes {FORMS}"
) -> Path | RunFolder | None:
    """Finds the file or the run of a name; None: the name of a function.

    Args:
        name: of the file or run.
        config: `out` is the folder of runs.
        takes: end of the message about an unknown name.

    Raises:
        UserError: nothing has that name.
    """
    if problem := address_problem(name):
        raise UserError(f"model: {problem}")
    if os.path.isfile(name):
        path = Path(name).absolute()
        if suffix_of(path, (*SUFFIXES, _PROGRAM)) is None:
            kinds = ", ".join((*SUFFIXES, _PROGRAM))
            raise UserError(
                f"{path} is not a classifier: expected a file name that ends in {kinds}"
            )
        return path
    try:
        return find_run(name, config.out)
    except UserError as error:
        if ":" in name:
            return None
        raise UserError(f"no file {name!r}, and {error}. {takes}") from None


def _is_program(path: Path) -> bool:
    return path.suffix.lower() == _PROGRAM


def weights_of_run(folder: RunFolder, which: str | None = None) -> Path:
    """Returns the file of a run's model; None: of the chosen one.

    Raises:
        UserError: the run has no such model.
    """
    if which is not None and which not in MODELS:
        raise UserError(f"unknown model {shown(which)} of a run: {did_you_mean(which, MODELS)}")
    which = which or read_record(folder).chosen
    path = folder.weights(which)
    if path.is_file():
        return path
    available = [name for name in MODELS if folder.weights(name).is_file()]
    raise UserError(
        f"the run {folder.name} has no model {which}: "
        + (
            f"it has {', '.join(available)}"
            if available
            else "let it finish, or name a checkpoint of it"
        )
    )


def _in_run(folder: RunFolder, path: Path, which: str | None) -> LocatedModel:
    """Describes a file of weights in a run's folder."""
    config = folder.read_config()
    built_as = _architecture(config, data_of(folder))
    parts = [folder.name, path.stem, which]
    name = "-".join(part for part in parts if part is not None)
    location = tracked(folder)
    own = folder.weights(path.stem) == path  # not from a checkpoint
    return LocatedModel(
        raymi_source(name, built_as, read_weights(path, which)),
        config,
        folder,
        uri=location.get("uri"),
        run_id=location.get("run_id"),
        model_id=location.get("model_ids", {}).get(path.stem) if own else None,
        variant=None
        if own and path.stem == read_record(folder).chosen
        else name.removeprefix(folder.name)[1:],
    )


def run_of(path: Path) -> RunFolder | None:
    """Returns the run of a weights file or checkpoint; other projects have a config.json, too."""
    folders = [RunFolder(folder) for folder in path.parents[:2]]
    return next((one for one in folders if one.config.is_file() and one.journal.is_file()), None)


def _architecture(config: Config, data: Mapping[str, Any]) -> dict[str, Any]:
    return architecture(
        config.model.name,
        num_classes=data["num_classes"],
        image_size=data["image_size"],
        width=config.model.width,
        depth=config.model.depth,
        activation=config.model.activation,
    )


def _refuse_choice(name: str, which: str | None) -> None:
    if which is not None:
        raise UserError(f"{name} is one model: leave out {which}, or name a run")
