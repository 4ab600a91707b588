"""Differences between nested results, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Yields the name of each value that differs in type, shape or a single bit.

    Args:
        old: nested dictionaries, sequences, tensors and plain values.
        new: the same of the other version.
        name: of both.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{name}[{number}]")
    elif isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        if old.dtype != new.dtype or not torch.equal(_bits(old), _bits(new)):
            yield name
    elif repr(old) != repr(new):  # also NaN equals NaN
        yield name


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the bits of a tensor, in which NaN equals NaN and 0 is not -0."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(whole[tensor.element_size()]) if tensor.is_floating_point() else tensor
