"""Whoever attacks a network leaves it, and all random state, as it found them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

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
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
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
        for module, own in buffers:
            module._buffers.update(own)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
