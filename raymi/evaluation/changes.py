"""Changes that a network makes in eval mode to its input and to itself, also behind autograd.

Attacks ask a network thousands of times. One that changes with each question, or changes the image
that it is asked about, is another network each time, and what attacks find of it means nothing.
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

from raymi.attacks.untouched import differing, random_state_kept, same_values
from raymi.evaluation.fingerprint import difference
from raymi.formatting import listed
from raymi.models.modes import full_precision

_ROUNDING = 1e-3  # of the logits' spread
_OF_TORCH = frozenset(vars(nn.Module()))  # attributes of any module, such as hooks and mode
_DEEPEST = 4  # of objects in attributes in attributes
_LIBRARIES = ("torch", "numpy", "builtins", "collections", "threading", "_thread")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class Changes:
    """Changes that a network made while it answered.

    Args:
        input: whether it changed the images that it was given.
        state: names of parameters, buffers and attributes that changed.
        answers: whether the same images with the same random state got other logits later.
    """

    input: bool
    state: tuple[str, ...]
    answers: bool

    def refusal(self) -> str | None:
        """Explains why no accuracy can be measured, with the remedy; None where it can."""
        if self.input:
            return (
                "it changes the tensor of images that it is given (input that changes), so "
                "attacks would not attack what it sees: let it begin with x = x.clone()"
            )
        if self.state:
            return (
                f"it changes itself in eval mode (state that changes: "
                f"{listed(self.state)}), so it is another network at each "
                "question and no accuracy is its own: let eval mode leave parameters, buffers and "
                "attributes alone"
            )
        if self.answers:
            return (
                "the same images with the same random state get other logits later (state that "
                "changes), outside of its parameters, buffers and attributes: let it keep no state "
                "and draw from torch's global generator"
            )
        return None


NO_CHANGES = Changes(False, (), False)
"""No changes: the network answers and stays as it is."""


def changes_of(model: nn.Module, x: Tensor, seed: int) -> Changes:
    """Asks a network the same and other questions in turn, and compares.

    Attributes that only mirror the last question (features kept for a plot) or that are computed
    once (a cache) are no change.

    Args:
        model: images in [0, 1] to logits (B, K), in eval mode.
        x: images (B, C, H, W).
        seed: of all that is random; the same for each question.
    """
    protocol = _Question(model, seed)
    other = x.flip(3)
    before = _tensors(model)
    first = protocol(x)
    protocol(x, gradient=True)
    later, held = [], []
    for _ in range(2):
        protocol(other, gradient=True)
        later.append(protocol(x))
        held.append(dict(_attributes(model)))
    changed = differing(before, _tensors(model), _same) + differing(held[0], held[1], _same)
    answers = any(difference(first, logits) > _ROUNDING for logits in later)
    return Changes(protocol.changed, tuple(changed), answers)


class _Question:
    """Asks a network with the same random state each time; notes whether its input changes."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.model, self.seed, self.changed = model, seed, False

    def __call__(self, x: Tensor, *, gradient: bool = False) -> Tensor:
        devices = [x.device] if x.device.type == "cuda" else []
        given = x.clone()
        with random_state_kept(self.seed, devices), torch.set_grad_enabled(gradient):
            # To change a leaf that requires a gradient in place would be an error: a copy is none.
            asked = given.requires_grad_().clone() if gradient else given
            logits = full_precision(self.model(asked))
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), given, allow_unused=True)
        self.changed |= not same_values(asked.detach(), x)
        return logits.detach()


def _tensors(model: nn.Module) -> dict[str, Any]:
    named = (("parameter", model.named_parameters()), ("buffer", model.named_buffers()))
    return {
        f"{kind} {name}": tensor.detach().clone() for kind, found in named for name, tensor in found
    }


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Copies of all values that modules hold in plain attributes, by their places."""
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
    """Parts of a container or object; none of what belongs to a library."""
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
