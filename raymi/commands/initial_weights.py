"""Finds the weights that `model.weights` names: a file, a run, or a model in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymi.config import Config
from raymi.errors import UserError
from raymi.files import save
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import home_folder, resolve_pretrained, runs_folder

_FORMS = (
    "a file of weights (.safetensors, .pt, .pth, .ckpt), the name or folder of a run, or "
    "models:/name@alias in MLflow"
)
_COMPARED = ("name", "width", "depth", "activation")


def resolve_runs(config: Config) -> tuple[Config, list[str]]:
    """Replaces what a configuration takes from elsewhere by paths: runs and weights.

    Returns:
        The configuration, and a line for each problem.
    """
    config, problems = resolve_pretrained(config)
    config, more = resolve_weights(config)
    return config, [*problems, *more]


def resolve_weights(config: Config) -> tuple[Config, list[str]]:
    """Replaces the name of `model.weights` by the path of a file; downloads models of MLflow.

    A run that has its copy of the weights does not need them again.

    Returns:
        The configuration, and a line if the weights are missing or of another network.
    """
    weights = config.model.weights
    if weights is None:
        return config, []
    try:
        path = _resolved(weights, config)
    except UserError as error:
        name = config.name or ""
        if not RunFolder(runs_folder(config) / name).initial.is_file():
            return config, [f"model.weights: {error}"]
        path = str(Path(weights).absolute())
    model = config.model.model_copy(update={"weights": path})
    return config.model_copy(update={"model": model}), []


def _resolved(weights: str, config: Config) -> str:
    from raymi.commands.find_model import SCHEMES, locate, run_of, weights_of_run
    from raymi.engine.initial_weights import split_weights

    if weights.startswith(SCHEMES):
        return _downloaded(weights, config)
    named, which = split_weights(weights)
    place = locate(str(named), config, f"model.weights takes {_FORMS}")
    if place is None or (isinstance(place, Path) and place.suffix == ".pt2"):
        raise UserError(
            f"expected {_FORMS}; got {weights}: a network of your own is model.name=module:function"
        )
    if isinstance(place, RunFolder):
        _check_network(weights, place.read_config().model.model_dump(), config)
        return str(weights_of_run(place, which))
    if (run := run_of(place)) is not None:
        _check_network(weights, run.read_config().model.model_dump(), config)
    return str(place) if which is None else f"{place}#{which}"


def _downloaded(weights: str, config: Config) -> str:
    """Writes a model of MLflow into a file that its digest names, and returns its path."""
    import io

    import torch

    from raymi.commands.find_model import find_model_source
    from raymi.weights import weights_as_bytes

    source = find_model_source(weights, config).source
    if source.build["kind"] != "raymi":
        raise UserError(
            f"{weights} is a program without the names of its weights: give a file of weights, or "
            "a model that raymi logged"
        )
    _check_network(weights, source.build, config)
    path = home_folder() / "weights" / f"{source.name}-{source.digest[:12]}.safetensors"
    if not path.is_file():
        state = torch.load(io.BytesIO(source.weights), weights_only=True)
        save(path, weights_as_bytes(state))
    return str(path)


def _check_network(weights: str, theirs: Mapping[str, Any], config: Config) -> None:
    """Refuses weights of another network than the configured one.

    Raises:
        UserError: They differ.
    """
    from raymi.models import architecture

    own, other = (
        architecture(
            model["name"],
            num_classes=2,
            image_size=32,
            **{key: model[key] for key in ("width", "depth", "activation")},
        )
        for model in (config.model.model_dump(), theirs)
    )
    different = [key for key in _COMPARED if own[key] != other[key]]
    if different:
        raise UserError(
            f"{weights} is of another network: "
            + ", ".join(f"expected model.{key}={own[key]}, got {other[key]}" for key in different)
            + ". Set "
            + " ".join(f"model.{key}={other[key]}" for key in different)
        )
