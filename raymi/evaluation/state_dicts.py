"""Searches files of other projects for state dicts, and renames their keys to a network's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raymi.errors import UserError
from raymi.formatting import listed

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of keys that DDP, DataParallel, AveragedModel, torch.compile, FSDP and activation
checkpointing add."""

_COUNTERS = ("n_averaged",)
"""Keys of wrappers (`torch.optim.swa_utils.AveragedModel`) that belong to no network."""

_NOT_MODELS = ("optim", "sched", "scaler", "callback", "loop")
"""Parts of names of training state without a model."""

_DEEPEST = 5


def state_dicts(content: Any) -> dict[str, dict[str, Tensor]]:
    """Finds all state dicts in the content of a file.

    Returns:
        State dicts by path: names joined with dots, "" for the content itself.
    """
    return dict(_state_dicts(content, (), _DEEPEST))


def _state_dicts(
    content: Any, place: tuple[str, ...], deeper: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    nested = {
        key: value
        for key, value in content.items()
        if isinstance(value, Mapping) and not key.endswith("_extra_state")
    }
    plain = len(content) - len(tensors) - len(nested)
    if tensors and not nested and (not plain or any("." in key for key in tensors)):
        yield ".".join(place), tensors
    for key, value in nested.items():
        if deeper and not any(part in key.lower() for part in _NOT_MODELS):
            yield from _state_dicts(value, (*place, key), deeper - 1)


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes prefixes of wrappers from all keys, and their counters."""
    inner = {key: value for key, value in state.items() if key not in _COUNTERS}
    while inner and (head := _common_head(inner)) in _WRAPPERS:
        inner = _below(inner, str(head))
    return inner


@dataclass
class Fitting:
    """Search for a network's keys in a state dict below any wrappers.

    Args:
        wanted: the network's own state dict; on any device.
    """

    wanted: Mapping[str, Tensor]
    closest: dict[str, Tensor] = field(default_factory=dict, init=False)
    """The renamed state dict with most keys of the network; for messages."""

    def __post_init__(self) -> None:
        parts = {part for key in self.wanted for part in key.split(".")}
        self._foreign = [wrapper for wrapper in _WRAPPERS if wrapper not in parts]

    def all_in(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Finds all parts of a state dict that have exactly the keys of the network.

        Args:
            state: such as a whole module of another framework, with an average beside the model.

        Returns:
            Renamed state dicts by their prefixes; "" for a single one.
        """
        matching = dict(self._fitting(self._unwrapped(state), ()))
        return {"": next(iter(matching.values()))} if len(matching) == 1 else matching

    def mismatch(self) -> str:
        """Describes how the closest state dict differs from the network's, in keys or in shapes."""
        missing = [key for key in self.wanted if key not in self.closest]
        unexpected = [key for key in self.closest if key not in self.wanted]
        parts = [
            f"{word} {listed(keys)}"
            for word, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        return f"keys do not match: {'; '.join(parts)}"

    def other_values(self, state: Mapping[str, Tensor]) -> str:
        """Describes tensors that do not fit the network's, or are not finite; "": none.

        Args:
            state: with the network's keys.
        """
        texts = []
        for key, expected in self.wanted.items():
            one = state[key]
            if one.shape != expected.shape:
                texts.append(
                    f"{key} has shape {tuple(one.shape)}, expected {tuple(expected.shape)}"
                )
            elif _kind(one) != _kind(expected):
                texts.append(f"{key} is of {one.dtype}, expected {expected.dtype}")
            elif one.layout != torch.strided or one.is_quantized:
                texts.append(f"{key} is sparse or quantized, expected a dense tensor")
            elif not bool(one.isfinite().all()):
                texts.append(f"{key} has NaN or infinite values")
        return listed(texts, between="; ")

    def _unwrapped(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Removes wrappers between other parts of keys; `_fitting` removes common prefixes."""
        counters = [key for key in _COUNTERS if key not in self.wanted]
        weights = {key: value for key, value in state.items() if key not in counters}
        renamed = {
            ".".join(part for part in key.split(".") if part not in self._foreign): value
            for key, value in weights.items()
        }
        return renamed if len(renamed) == len(weights) else weights

    def _fitting(
        self, state: dict[str, Tensor], prefix: tuple[str, ...]
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        while True:
            self._compare(state)
            if state.keys() == self.wanted.keys():
                yield ".".join(prefix), {key: state[key] for key in self.wanted}
                return
            head = _common_head(state)
            if head is None:
                break
            state, prefix = _below(state, head), (*prefix, head)
        heads = dict.fromkeys(key.partition(".")[0] for key in state if "." in key)
        for head in heads if len(state) > len(self.wanted) else ():
            yield from self._fitting(_below(state, head), (*prefix, head))

    def _compare(self, state: dict[str, Tensor]) -> None:
        def closeness(one: Mapping[str, Tensor]) -> tuple[int, int]:
            return sum(key in self.wanted for key in one), -len(one)

        inner = {f"net.{key}": value for key, value in state.items()}  # without normalisation
        for one in (state, inner):
            if not self.closest or closeness(one) > closeness(self.closest):
                self.closest = one


def choose(
    path: str,
    states: Mapping[str, dict[str, Tensor]],
    which: str | None,
) -> dict[str, Tensor]:
    """Chooses one of the state dicts in a file.

    Args:
        path: of the file, for messages.
        states: at least one state dict, by its path in the file.
        which: the path that the user named.

    Raises:
        UserError: no state dict has that path, or none is named and several differ.
    """
    places = [place or "the file itself" for place in states]
    if which is not None:
        if which in states:
            return states[which]
        if len(states) == 1:
            raise UserError(f"{path} holds one model: leave out {which}, or name a run")
        raise UserError(f"{path} has no model {which}: it has {', '.join(places)}")
    first, *others = states.values()
    if not all(_same(first, other) for other in others):
        last = list(states)[-1]
        raise UserError(
            f"{path} holds several models: {', '.join(places)}. Name one of them, such as "
            f"which={last}"
        )
    return first


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def _common_head(state: Mapping[str, Tensor]) -> str | None:
    """Returns the first part of all keys; None: it differs, or is the whole key."""
    heads = {key.partition(".")[0] if "." in key else None for key in state}
    return heads.pop() if len(heads) == 1 else None


def _below(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    start = f"{head}."
    return {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()
