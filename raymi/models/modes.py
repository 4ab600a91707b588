"""How a network is used for a while: in eval mode, once more, with outputs in full precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode inside; each module's own train flag back afterwards."""
    was_training = [module for module in model.modules() if module.training]
    for module in was_training:
        module.training = False
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def repetition(module: nn.Module) -> AbstractContextManager[None]:
    """Within it, a forward that begins now can be made once more and computes the same: modules are
    in the mode of now, buffers (the vectors of spectral norm, running statistics) have the values
    of now. Afterwards both are what they were before.

    Args: module, any; a forward must not change its parameters.
    """
    modules, buffers = list(module.modules()), list(module.buffers())
    now = _modes(modules), [buffer.clone() for buffer in buffers]

    @contextmanager
    def again() -> Iterator[None]:
        before = _modes(modules), [buffer.clone() for buffer in buffers]
        try:
            _set(modules, buffers, *now)
            yield
        finally:
            _set(modules, buffers, *before)

    return again()


def _modes(modules: list[nn.Module]) -> list[dict[str, bool]]:
    flags = ("training", "track_running_stats")
    return [{name: vars(one)[name] for name in flags if name in vars(one)} for one in modules]


def _set(
    modules: list[nn.Module],
    buffers: list[Tensor],
    modes: list[dict[str, bool]],
    values: list[Tensor],
) -> None:
    for module, flags in zip(modules, modes, strict=True):
        vars(module).update(flags)
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            buffer.data.copy_(value)


def full_precision(logits: Tensor) -> Tensor:
    """Logits in fp32 at least, (B, K): under autocast a network answers in bf16."""
    return logits if logits.element_size() >= 4 else logits.float()
