"""Changes that a network makes in eval mode to its input and to itself, also behind autograd.

Attacks call a network thousands of times. The accuracy of a network that changes with each call,
or that changes the image it is given, means nothing.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raymi.attacks.untouched import differing, same_values
from raymi.evaluation.fingerprint import difference
from raymi.formatting import listed
from raymi.models.modes import full_precision
from raymi.random_state import random_state_kept

_ROUNDING = 1e-3  # of the logits' spread
_OF_TORCH = frozenset(vars(nn.Module()))  # attributes of any module, such as hooks and mode
_DEEPEST = 4  # of objects in attributes in attributes
_LIBRARIES = ("torch", "numpy", "builtins", "collections", "threading", "_thread")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class Changes:
    """Changes that a network made in forward passes.

    Args:
        input: the images that it was given changed.
        state: names of parameters, buffers and attributes that changed.
        outputs: the same images with the same random state got other logits later.
    """

    input: bool
    state: tuple[str, ...]
    outputs: bool

    def refusal(self) -> str | None:
        """Explains why no accuracy can be measured, with the remedy; None: it can be."""
        if self.input:
            return (
                "it changes the tensor of images that it is given (input that changes), so "
                "attacks would not attack what it sees: let it begin with x = x.clone()"
            )
        if self.state:
            return (
                f"it changes itself in eval mode (state that changes: "
                f"{listed(self.state)}), so each forward pass evaluates another network and "
                "its accuracy is undefined: let eval mode leave parameters, buffers and attributes "
                "alone"
            )
        if self.outputs:
            return (
                "the same images with the same random state get other logits later (state that "
                "changes), outside of its parameters, buffers and attributes: let it keep no state "
                "and draw from torch's global generator"
            )
        return None


NO_CHANGES = Changes(False, (), False)
"""Changes of a network that stays as it is."""


def changes_of(model: nn.Module, x: Tensor, seed: int) -> Changes:
    """Compares a network before and after forward passes of the same and of other images.

    Attributes that only mirror the last input (features saved for a plot) or that are computed
    once (a cache) are no change.

    Args:
        model: images in [0, 1] to logits (B, K), in eval mode.
        x: images (B, C, H, W).
        seed: random seed of each forward pass.
    """
    forward = _Forward(model, seed)
    other = x.flip(3)
    before = _tensors(model)
    first = forward(x)
    forward(x, gradient=True)
    later, attributes = [], []
    for _ in range(2):
        forward(other, gradient=True)
        later.append(forward(x))
        attributes.append(dict(_attributes(model)))
    changed = differing(before, _tensors(model), _same) + differing(
        attributes[0], attributes[1], _same
    )
    outputs = any(difference(first, logits) > _ROUNDING for logits in later)
    return Changes(forward.changed, tuple(changed), outputs)


class _Forward:
    """Forward pass with the same random state each time; records whether the input changes."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.model, self.seed, self.changed = model, seed, False

    def __call__(self, x: Tensor, *, gradient: bool = False) -> Tensor:
        devices = [x.device] if x.device.type == "cuda" else []
        given = x.clone()
        with random_state_kept(self.seed, devices), torch.set_grad_enabled(gradient):
            # In-place changes of a leaf that requires a gradient are errors: pass a copy.
            passed = given.requires_grad_().clone() if gradient else given
            logits = full_precision(self.model(passed))
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), given, allow_unused=True)
        self.changed |= not same_values(passed.detach(), x)
        return logits.detach()


def _tensors(model: nn.Module) -> dict[str, Any]:
    named = (("parameter", model.named_parameters()), ("buffer", model.named_buffers()))
    return {
        f"{kind} {name}": tensor.detach().clone()
        for kind, tensors in named
        for name, tensor in tensors
    }


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields copies of all values in plain attributes of modules, with their paths."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        seen.add(id(module))
        for key, value in vars(module).items():
            if key not in _OF_TORCH:
                place = f"{name}.{key}" if name else key
                yield from _values(f"attribute {place}", value, seen, _DEEPEST)


def _values(place: str, value: Any, seen: set[int], deeper: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield place, value.detach().clone()
    elif isinstance(value, np.ndarray):
        yield place, (value.shape, value.tobytes())
    elif isinstance(value, (np.generic, *_PLAIN)):
        yield place, repr(value)
    elif deeper and id(value) not in seen:
        seen.add(id(value))
        for key, inner in _inside(value):
            yield from _values(f"{place}{key}", inner, seen, deeper - 1)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the parts of a container or object, without objects of libraries."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", inner) for key, inner in list(value.items()))
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"[{number}]", inner) for number, inner in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield "", repr(sorted(map(repr, value)))
    elif isinstance(value, nn.Module):
        yield from ((f".{key}", inner) for key, inner in value.named_parameters())
        yield from ((f".{key}", inner) for key, inner in value.named_buffers())
        yield from ((f".{k}", v) for k, v in list(vars(value).items()) if k not in _OF_TORCH)
    elif not isinstance(value, (type, types.ModuleType, types.FunctionType, types.MethodType)):
        library = type(value).__module__.partition(".")[0] in _LIBRARIES
        own = {} if library else getattr(value, "__dict__", {})
        yield from ((f".{key}", inner) for key, inner in list(own.items()))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return same_values(one, other)
    return type(one) is type(other) and bool(one == other)
