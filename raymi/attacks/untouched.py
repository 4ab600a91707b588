"""Whoever attacks a network leaves it, and all random state, as it found them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from raymi.models.modes import evaluation_mode


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within it the network is in eval mode, and its parameters ask for no gradient.

    Afterwards each module is in its own mode, parameters have the gradients and flags that they
    had, hooks that were added are gone, and the global random state of torch (on the CPU and the
    model's GPU), numpy and Python is that of before.

    Args: model, whose buffers do not change in eval mode.
    """
    parameters = list(model.parameters())
    flags = [parameter.requires_grad for parameter in parameters]
    gradients = [parameter.grad for parameter in parameters]
    hooks = [_hooks(module) for module in model.modules()]
    before = [[dict(kind) for kind in kinds] for kinds in hooks]
    devices = {p.device for p in parameters if p.device.type == "cuda"}
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(sorted(devices, key=str)), evaluation_mode(model):
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
            yield
    finally:
        for parameter, flag, gradient in zip(parameters, flags, gradients, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        for kinds, kept in zip(hooks, before, strict=True):
            for kind, entries in zip(kinds, kept, strict=True):
                kind.clear()
                kind.update(entries)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


def _hooks(module: nn.Module) -> list[dict[int, Any]]:
    return [
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ]
