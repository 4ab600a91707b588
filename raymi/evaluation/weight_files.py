"""State dicts in files, of raymi and of others, read without executing anything."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from raymi.engine.state import check_format
from raymi.errors import UserError, first_line

SUFFIXES = (".safetensors", ".pt", ".pth")
_NESTS = ("state_dict", "model_state_dict", "model", "net", "weights")


def read_weights(path: Path, which: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU.

    Args: path, a `.safetensors`, or a `.pt` or `.pth` with a state dict, by itself or in a dict
        beside other things; or a checkpoint of a run. which, of the classifiers of a checkpoint:
        best, last (as it was then), best-averaged, last-averaged; None: last.
    Raises: UserError where it cannot be read, holds more than tensors and plain values, or has no
        state dict, or only one to choose from.
    """
    content = _read(path)
    if _is_checkpoint(content):
        return _of_checkpoint(path, content, which or "last")
    if which is not None:
        raise UserError(f"{path} holds one model: leave out {which}, or name the run")
    state = _state_dict(content)
    if state is None:
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ""
        raise UserError(
            f"{path}: expected a state dict, or one under {', '.join(_NESTS)}, got "
            f"{type(content).__name__} {keys}: save it with torch.save(model.state_dict(), path)"
        )
    for prefix in ("module.", "_orig_mod."):  # of DistributedDataParallel and torch.compile
        consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors and plain values, and would run code when it is "
            "loaded: save the state dict alone, with torch.save(model.state_dict(), path), or "
            "write a function that loads it and give model=module:function"
        ) from None
    except Exception as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}): expected a file "
            f"of weights, one of {', '.join(SUFFIXES)}, that is whole"
        ) from None


def _state_dict(content: Any, deeper: int = 2) -> dict[str, Tensor] | None:
    """The first mapping from names to tensors alone."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    inner = [content[name] for name in _NESTS if deeper and name in content]
    return next((found for one in inner if (found := _state_dict(one, deeper - 1))), None)


def _is_checkpoint(content: Any) -> bool:
    return isinstance(content, Mapping) and {"format", "position", "best"} <= set(content)


def _of_checkpoint(path: Path, content: dict[str, Any], which: str) -> dict[str, Tensor]:
    check_format(content)
    average = content["average"] or {}
    there = {"last": content["model"], "last-averaged": average.get("model")}
    there |= {f"best{suffix}": best["weights"] for suffix, best in content["best"].items()}
    known = [name for name, weights in there.items() if weights]
    if which not in known:
        raise UserError(f"the checkpoint {path} has no model {which}: it has {', '.join(known)}")
    return there[which]
