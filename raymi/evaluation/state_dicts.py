"""Searches files of other projects for state dicts, and renames their keys to a network's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


class Fitting:
    """Search for a network's keys in state dicts below any wrappers.

    Args:
        wanted: the network's own state dict; on any device.
    """

    def __init__(self, wanted: Mapping[str, Tensor]) -> None:
        self.wanted = wanted
        self._seen: list[dict[str, Tensor]] = []
        own = {part for key in wanted for part in key.split(".")}
        self._foreign = [wrapper for wrapper in _WRAPPERS if wrapper not in own]

    def all_in(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Finds all parts of a state dict that have exactly the keys of the network.

        Args:
            state: such as a whole module of another framework, with an average beside the model.

        Returns:
            Renamed state dicts by their prefixes; "" for a single one.
        """
        state = self._unwrapped(state)
        self._seen.append(state)
        longest = max(self.wanted, key=len)
        heads = [key.removesuffix(longest) for key in state if f".{key}".endswith(f".{longest}")]
        matching = {
            head.rstrip("."): {key: state[head + key] for key in self.wanted}
            for head in heads
            if {key for key in state if key.startswith(head)} == {head + key for key in self.wanted}
        }
        return {"": next(iter(matching.values()))} if len(matching) == 1 else matching

    def mismatch(self) -> str:
        """Describes how the keys of the closest part of a state dict differ from the network's."""

        def closeness(keys: list[str]) -> tuple[int, int]:
            return sum(key in self.wanted for key in keys), -len(keys)

        parts = [keys for state in self._seen for keys in _parts(state)]
        parts += [[f"net.{key}" for key in keys] for keys in parts]  # without normalisation
        closest = max(parts, key=closeness)
        missing = [key for key in self.wanted if key not in closest]
        unexpected = [key for key in closest if key not in self.wanted]
        texts = [
            f"{word} {listed(keys)}"
            for word, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        return f"keys do not match: {'; '.join(texts)}"

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
        """Removes wrappers from all parts of keys."""
        counters = [key for key in _COUNTERS if key not in self.wanted]
        weights = {key: value for key, value in state.items() if key not in counters}
        renamed = {
            ".".join(part for part in key.split(".") if part not in self._foreign): value
            for key, value in weights.items()
        }
        return renamed if len(renamed) == len(weights) else weights


def _parts(state: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Yields the keys of a state dict, and those below each of their prefixes without it."""
    yield list(state)
    for head in {f"{key[:i]}." for key in state for i, letter in enumerate(key) if letter == "."}:
        yield [key.removeprefix(head) for key in state if key.startswith(head)]


def choose(
    path: str,
    states: Mapping[str, dict[str, Tensor]],
    which: str | None,
    naming: str = "which={}",
) -> dict[str, Tensor]:
    """Chooses one of the state dicts in a file.

    Args:
        path: of the file, for messages.
        states: at least one state dict, by its path in the file.
        which: the path that the user named.
        naming: how the user names one, for messages.

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
            f"{naming.format(last)}"
        )
    return first


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()
