"""Attacks leave a network and all random state as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raymi.models.modes import evaluation_mode


@contextmanager
def random_state_kept(
    seed: int | None = None, devices: Iterable[torch.device] = ()
) -> Iterator[None]:
    """Afterwards the global random state of torch (on the CPU and `devices`, which are GPUs), numpy
    and Python is that of before.

    Args: seed of all of it within; None: it goes on from where it is.
    """
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(sorted(devices, key=str)):
            if seed is not None:
                torch.manual_seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
                random.seed(seed)
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


@contextmanager
def untouched(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Within it the network is in eval mode, and its parameters ask for no gradient.

    Afterwards each module is in its own mode, parameters have the gradients and flags that they
    had, buffers their values (some networks count, or normalise by what they see, in eval mode,
    too), and the global random state of torch (on the CPU and the model's GPU), numpy and Python is
    that of before.

    Args: model, whose parameters do not change; seed of all that random state within; None: it goes
        on from where it is.
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
        _put_back(buffers)
        with torch.no_grad():
            for buffer, value in values:
                if buffer.shape != value.shape:  # resized in place
                    buffer.data = value
                elif not same_values(buffer, value):
                    buffer.copy_(value)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are alike to the last bit; what is not a number in both is alike."""
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
    """Returns the names of values that only one of two snapshots has, or that differ.

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


def _put_back(buffers: list[tuple[nn.Module, dict[str, Tensor | None]]]) -> None:
    """Gives modules the very buffers that they had; those of a script have no `update`."""
    for module, own in buffers:
        for name in set(module._buffers.keys()) - set(own):
            del module._buffers[name]
        for name, buffer in own.items():
            if module._buffers[name] is not buffer:
                module._buffers[name] = buffer
