"""Reads state dicts from files of raymi and of other projects without running code."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymi.errors import UserError, first_line
from raymi.evaluation.state_dicts import Fitting, choose, state_dicts
from raymi.runs.checkpoint import check_format, check_whole
from raymi.weights import parse_weights

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".pt.tar", ".ckpt", ".bin")
"""Suffixes of files of weights, in any case."""

_OWN_FUNCTION = (
    "write a function that returns the network with its weights and its normalisation inside, for "
    "raw images in [0, 1], and give model=module:function"
)


_REMEDY = (
    "; or, as raymi must know the images that weights expect (normalize.mean, normalize.std), "
    f"{_OWN_FUNCTION}"
)


def suffix_of(path: Path, known: tuple[str, ...] = SUFFIXES) -> str | None:
    """Returns the longest known suffix of a file's name, as it is written there; None: none."""
    name = path.name.lower()
    matching = [suffix for suffix in known if name.endswith(suffix)]
    return path.name[-max(map(len, matching)) :] if matching else None


def read_weights(path: Path, which: str | None = None) -> dict[str, Tensor]:
    """Reads the state dict in a file, onto the CPU.

    Args:
        path: a safetensors file; a file of torch.save with a state dict, also within dicts; or a
            checkpoint of a run.
        which: classifier of a checkpoint: best, last (at that time), best-averaged, last-averaged,
            None: last; path of a state dict in a file with several.

    Raises:
        UserError: the file cannot be read, is damaged, holds more than tensors and plain values,
            or has no state dict or several.
    """
    content = _read(path)
    if _is_checkpoint(content):
        return _of_checkpoint(path, content, which or "last")
    return choose(str(path), _states(path, content), which)


def read_weights_for(
    path: Path,
    wanted: Mapping[str, Tensor],
    built_as: str,
    which: str | None = None,
    *,
    naming: str = "which={}",
    remedy: str = _REMEDY,
) -> dict[str, Tensor]:
    """Reads the state dict of a file that fits a network, below any wrappers.

    Args:
        path: as of `read_weights`.
        wanted: the state dict of the network with any values.
        built_as: the settings that the network is built from, for messages.
        which: as of `read_weights`.
        naming: how the user names one of several models, for messages.
        remedy: end of the message about weights that do not fit.

    Returns:
        Tensors on the CPU with the keys and shapes of `wanted`.

    Raises:
        UserError: as `read_weights`; or keys, shapes or kinds of numbers do not match.
    """
    content = _read(path)
    if _is_checkpoint(content):
        states = {"": _of_checkpoint(path, content, which or "last")}
        which = None
    else:
        states = _states(path, content)
    if which in states:
        states = {"": states[which]}
        which = None
    fitting = Fitting(wanted)
    matching = {
        ".".join(part for part in (place, prefix) if part): state
        for place, one in states.items()
        for prefix, state in fitting.all_in(one).items()
    }
    problem = None if matching else fitting.mismatch()
    if problem is None:
        state = choose(str(path), matching, which, naming)
        problem = fitting.other_values(state)
        if not problem:
            return state
    elif which is not None:
        choose(str(path), states, which, naming)
    raise UserError(
        f"{path}: its weights do not fit {built_as}: {problem}. Set model.name, model.width, "
        f"model.depth and model.activation as they were in training{remedy}"
    )


def _states(path: Path, content: Any) -> dict[str, dict[str, Tensor]]:
    states = state_dicts(content)
    if not states:
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ""
        raise UserError(
            f"{path}: expected a state dict, by itself or within dicts, got "
            f"{type(content).__name__} {keys}: save it with torch.save(model.state_dict(), path)"
        )
    return states


def _read(path: Path) -> Any:
    """Reads a file by its content, not by its suffix."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    check_whole(path, data)
    if _looks_like_safetensors(data) or path.name.lower().endswith(".safetensors"):
        return parse_weights(data, str(path)).tensors
    if data[:4] == b"PK\x03\x04":
        _check_archive(path, data)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, error) from None
    except Exception as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}): expected a file "
            f"of weights, one of {', '.join(SUFFIXES)}, that is whole"
        ) from None


def archive_names(data: bytes, name: str) -> list[str]:
    """Verifies the checksums of a zip archive, which torch itself does not; returns its parts.

    Raises:
        UserError: it is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged, names = archive.testzip(), archive.namelist()
    except Exception as error:  # zipfile raises many types
        raise UserError(
            f"{name} is damaged ({type(error).__name__}: {first_line(error)}): copy it again from "
            "an intact original"
        ) from None
    if damaged is not None:
        raise UserError(
            f"{name} is damaged: {damaged} in it does not match its checksum (CRC-32). Copy it "
            "again from an intact original"
        )
    return names


def _looks_like_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{" and 0 < int.from_bytes(data[:8], "little") <= len(data) - 8


def _check_archive(path: Path, data: bytes) -> None:
    """Refuses a damaged archive, and one with a program."""
    names = archive_names(data, str(path))
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or "archive_format" in inner:
        kind = "TorchScript" if "constants.pkl" in inner else "torch.export"
        raise UserError(
            f"{path} holds a program of {kind}, expected a state dict: save that with "
            "torch.save(model.state_dict(), path), give an exported program a name that ends in "
            f".pt2, or {_OWN_FUNCTION}"
        )


def _refused_pickle(path: Path, error: Exception) -> UserError:
    named = re.search(r"(?:GLOBAL|global:?) ([\w.]+) was not an allowed", str(error))
    name = f" ({named[1]})" if named else ""
    return UserError(
        f"{path} holds more than tensors and plain values{name}, and would run code when it is "
        "loaded, or is damaged. If you trust it, save its state dict alone in Python: "
        f"content = torch.load({path.name!r}, weights_only=False), then "
        "torch.save(content['state_dict'], 'weights.pt') with the key that it has there; or "
        f"{_OWN_FUNCTION}"
    )


def _is_checkpoint(content: Any) -> bool:
    return isinstance(content, Mapping) and {"format", "position", "best"} <= set(content)


def _of_checkpoint(path: Path, content: dict[str, Any], which: str) -> dict[str, Tensor]:
    check_format(content)
    average = content["average"] or {}
    models = {"last": content["model"], "last-averaged": average.get("model")}
    models |= {f"best{suffix}": best["weights"] for suffix, best in content["best"].items()}
    available = {name: weights for name, weights in models.items() if weights}
    if which not in available:
        names = ", ".join(available)
        raise UserError(f"the checkpoint {path} has no model {which}: it has {names}")
    return available[which]
