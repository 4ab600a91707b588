"""Model sources: descriptions from which any process builds the same classifier."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raymi.attacks.untouched import untouched
from raymi.errors import UserError
from raymi.evaluation.exported_program import load_program
from raymi.formatting import plain_name
from raymi.models import build_model
from raymi.models.user_model import build_user_classifier, check_logits, source_digest
from raymi.random_state import random_state_kept

_SEED = 0  # of random numbers that are drawn when a network is built


@dataclass(frozen=True)
class ModelSource:
    """Picklable description of a classifier.

    Args:
        name: short, for tables and files: letters, digits, `.`, `_` and `-`.
        build: how to build it, in JSON's types. `kind` is "raymi" (a `Classifier`, see
            `raymi.models.architecture`), "function" (the user's, of raw images) or "program"
            (exported by torch). The first two have `source`, the sha256 of the file of the user's
            function, or None.
        weights: state dict in the format of `torch.save`, without code; of a program, its file.
        digest: SHA-256 in hexadecimal over `build` and names, types, shapes and values of all
            tensors (or the program's file); independent of the name and the file's format.
    """

    name: str
    build: Mapping[str, Any]
    weights: bytes = field(repr=False)
    digest: str

    def load(self) -> nn.Module:
        """Builds the classifier on the CPU in eval mode; global random state does not change.

        Returns:
            A new module at each call: images (B, 3, H, W) in [0, 1] to logits (B, K).

        Raises:
            UserError: it cannot be built, or the user's function or file has changed.
        """
        if self.build["kind"] == "program":
            self._check_digest(self.build, self.weights)
            return load_program(self.weights, self.name)
        state = torch.load(io.BytesIO(self.weights), weights_only=True)
        build = dict(self.build)
        if build["source"] is not None:
            build["source"] = source_digest(build["name"])
        self._check_digest(build, state)
        model = _build(build)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{self.name}: its weights do not fit {architecture_text(build)} "
                f"({_first_lines(error)}): set model.name, model.width and model.depth as they "
                "were in training"
                if build["kind"] == "raymi"
                else f"{self.name}: the function makes another network at each call "
                f"({_first_lines(error)}): let it always make the same one"
            ) from None
        return model.eval()

    def _check_digest(
        self, build: Mapping[str, Any], weights: Mapping[str, Tensor] | bytes
    ) -> None:
        now = _digest(build, weights)
        if now != self.digest:
            raise UserError(
                f"{self.name} is not the classifier that was found: expected sha256 "
                f"{self.digest[:12]}, got {now[:12]}. If its code ({build.get('name')}) has "
                "changed, start again; every node must see the same file"
            )


def raymi_source(
    name: str, architecture: Mapping[str, Any], state: Mapping[str, Tensor]
) -> ModelSource:
    """Describes a `Classifier`, which includes its normalisation.

    Args:
        name: any text.
        architecture: see `raymi.models.architecture`.
        state: its state dict.

    Raises:
        UserError: the state dict has no normalisation, or other values than tensors.
    """
    if not {"normalize.mean", "normalize.std"} <= set(state):
        raise UserError(
            f"{name}: its state dict has no normalize.mean and normalize.std, so the range of its "
            "images is unknown: write a function that returns the network with "
            "its weights and its normalisation inside, for raw images in [0, 1], and give "
            "model=module:function"
        )
    user = ":" in architecture["name"]
    source = source_digest(architecture["name"]) if user else None
    return _from_state(name, {"kind": "raymi", **architecture, "source": source}, state)


def expected_state(architecture: Mapping[str, Any]) -> dict[str, Tensor]:
    """Builds a `Classifier` for its state dict, in which only names, shapes and types count.

    Args:
        architecture: see `raymi.models.architecture`.

    Raises:
        UserError: the user's function cannot be called.
    """
    state = _build({"kind": "raymi", **architecture}).state_dict()
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def architecture_text(build: Mapping[str, Any]) -> str:
    """Returns the settings of a network as text."""
    return ", ".join(f"{k}={v}" for k, v in build.items() if k not in ("kind", "source"))


def function_source(name: str, num_classes: int, image_size: int) -> ModelSource:
    """Describes the network that a user's function returns.

    Args:
        name: `module:function`; it gets `num_classes` and `image_size` if it has such parameters,
            and returns a network of raw images (B, 3, H, W) in [0, 1] to logits (B, K). Unlike in
            training, raymi does not normalise the images.
        num_classes: K of the data set.
        image_size: pixels of the data set.

    Raises:
        UserError: it cannot be imported or called, or returns something else.
    """
    build = {
        "kind": "function",
        "name": name,
        "num_classes": num_classes,
        "image_size": image_size,
        "source": source_digest(name),
    }
    return _from_state(name, build, _build(build).state_dict())


def program_source(name: str, data: bytes) -> ModelSource:
    """Describes an exported program.

    Args:
        name: any text.
        data: content of its `.pt2` file.
    """
    build = {"kind": "program"}
    return ModelSource(plain_name(name), build, data, _digest(build, data))


def check_classifier(name: str, model: nn.Module, num_classes: int, image_size: int) -> None:
    """Runs a classifier on two grey images, then on one, as blocks have any size.

    Args:
        name: for the message.
        model: as of `ModelSource.load`.
        num_classes: K of the data set.
        image_size: pixels of the data set.

    Raises:
        UserError: the logits are not tensors (2, K) and (1, K).
    """
    for num_images in (2, 1):
        with untouched(model, _SEED):
            check_logits(name, model, num_classes, image_size, num_images)


def _from_state(name: str, build: dict[str, Any], state: Mapping[str, Any]) -> ModelSource:
    others = [f"{k} ({type(v).__name__})" for k, v in state.items() if not isinstance(v, Tensor)]
    if others:
        raise UserError(
            f"{name}: expected a state dict of tensors alone, got {', '.join(others[:3])}: make "
            "them buffers"
        )
    # Copies: the file of a view would have the whole tensor below it.
    tensors = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()
    }
    file = io.BytesIO()
    torch.save(tensors, file)
    return ModelSource(plain_name(name), build, file.getvalue(), _digest(build, tensors))


def _build(build: Mapping[str, Any]) -> nn.Module:
    """Builds the network without its weights, with the same random numbers at each call."""
    name, sizes = build["name"], {k: build[k] for k in ("num_classes", "image_size")}
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with random_state_kept(_SEED, [torch.device("cuda", index) for index in gpus]):
        if build["kind"] == "function":
            return build_user_classifier(name, **sizes).cpu()
        return build_model(
            name,
            width=build["width"],
            depth=build["depth"],
            activation=build["activation"],
            mean=(0.0,) * 3,  # the weights bring mean and standard deviation
            std=(1.0,) * 3,
            **sizes,
        ).cpu()


def _digest(build: Mapping[str, Any], weights: Mapping[str, Tensor] | bytes) -> str:
    sha = hashlib.sha256(json.dumps(dict(build), sort_keys=True).encode())
    if isinstance(weights, bytes):
        sha.update(weights)
        return sha.hexdigest()
    for name, tensor in sorted(weights.items()):
        sha.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        sha.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(lines[1:3])[:300] if len(lines) > 1 else lines[0][:300]
