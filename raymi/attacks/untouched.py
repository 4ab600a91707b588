"""Contexts that restore a network and all random state after an attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raymi.models.modes import evaluation_mode
from raymi.random_state import random_state_kept


@contextmanager
def untouched(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Puts a network in eval mode without parameter gradients, and restores everything on exit.

    Restored are the mode of each module, gradients and `requires_grad` of parameters, values of
    buffers (some networks update them in eval mode, too), and the global random state of torch (on
    the CPU and the model's GPU), numpy and Python.

    Args:
        model: any network; its parameters must not change inside the context.
        seed: seed of the random state inside the context; None: not changed on entry.
    """
    buffers = [(module, dict(module._buffers.items())) for module in model.modules()]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    parameters = list(model.parameters())
    flags = [parameter.requires_grad for parameter in parameters]
    gradients = [parameter.grad for parameter in parameters]
    tensors = (*parameters, *model.buffers())
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    try:
        with random_state_kept(seed, devices), evaluation_mode(model):
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
            yield
    finally:
        for parameter, flag, gradient in zip(parameters, flags, gradients, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        _restore_buffers(buffers)
        with torch.no_grad():
            for buffer, value in values:
                if buffer.shape != value.shape:  # resized in place
                    buffer.data = value
                elif not same_values(buffer, value):
                    buffer.copy_(value)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Returns True if two tensors are equal bit for bit; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def copied_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns copies of all parameters and buffers by their names, without graphs."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def differing(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    same: Callable[[Any, Any], bool] = same_values,
) -> list[str]:
    """Returns the names of values that differ between two snapshots, or are in one only.

    Args:
        before: values by name.
        after: values by name.
        same: comparison of two values; by default of tensors, to the last bit.
    """
    return [
        name
        for name in {**before, **after}
        if name not in before or name not in after or not same(before[name], after[name])
    ]


def _restore_buffers(buffers: list[tuple[nn.Module, dict[str, Tensor | None]]]) -> None:
    """Restores the buffer objects of modules; a script module's have no `update`."""
    for module, own in buffers:
        for name in set(module._buffers.keys()) - set(own):
            del module._buffers[name]
        for name, buffer in own.items():
            if module._buffers[name] is not buffer:
                module._buffers[name] = buffer
