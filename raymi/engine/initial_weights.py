"""Weights that a run starts from, kept in its folder: a resumed run does not need their source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from raymi.config import Config
from raymi.engine.storage import Storage
from raymi.errors import UserError
from raymi.evaluation.weight_files import read_weights_for
from raymi.runs.pretrained import save_weights
from raymi.weights import read_weights_file

_REMEDY = ", or give other weights (model.weights=...)"


def load_initial_weights(config: Config, model: nn.Module, storage: Storage) -> None:
    """Loads the weights of `model.weights`, and copies them into the folder of the run.

    Every worker reads the file. A state dict without normalisation keeps the model's.

    Raises:
        UserError: The file cannot be read, or does not fit the network.
    """
    copy = storage.folder.initial
    if copy.is_file():
        state = read_weights_file(copy).tensors
    else:
        assert config.model.weights is not None
        state = read_initial_weights(config.model.weights, model.state_dict(), config.model.name)
    model.load_state_dict(state)
    storage.write("the initial weights", copy, partial(_keep, copy, model))


def _keep(path: Path, model: nn.Module) -> None:
    if not path.is_file():
        save_weights(path, model, {})


def read_initial_weights(
    weights: str, wanted: Mapping[str, Tensor], built_as: str
) -> dict[str, Tensor]:
    """Reads a file of weights for a classifier.

    Args:
        weights: path of the file, with #NAME for one of several models in it.
        wanted: state dict of the classifier.
        built_as: its settings, for messages.

    Returns:
        Tensors on the CPU with the keys and shapes of `wanted`.

    Raises:
        UserError: The file cannot be read, or does not fit.
    """
    path, which = split_weights(weights)
    naming = f"model.weights={path}#{{}}"
    try:
        return read_weights_for(path, wanted, built_as, which, naming=naming, remedy=_REMEDY)
    except UserError as problem:
        net = {k.removeprefix("net."): v for k, v in wanted.items() if k.startswith("net.")}
        try:
            bare = read_weights_for(path, net, built_as, which, naming=naming, remedy=_REMEDY)
        except UserError:
            raise problem from None
        return {**wanted, **{f"net.{key}": value for key, value in bare.items()}}


def split_weights(weights: str) -> tuple[Path, str | None]:
    """Returns the path of a file of weights, and the name of one of the models in it."""
    path, mark, which = weights.rpartition("#")
    return (Path(path), which) if mark and not Path(weights).is_file() else (Path(weights), None)


def digest_of_initial_weights(path: Path) -> dict[str, str]:
    """Returns the journal's field with the digest of a run's initial weights; empty: none."""
    if not path.is_file():
        return {}
    return {"initial_weights": hashlib.sha256(path.read_bytes()).hexdigest()}
