"""Temporary modes of a network: eval mode, a repeated forward, outputs in full precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts all modules in eval mode, and restores each module's train flag on exit."""
    was_training = [module for module in model.modules() if module.training]
    for module in was_training:
        module.training = False
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


class Repetition:
    """Reusable context that repeats a forward from the state at construction.

    Inside, modules have the modes of that time, and their buffers (running statistics, vectors of
    spectral norm) are copies of the values of that time, so that the forward's updates are
    discarded. On exit modes and buffer objects are restored. It can be entered many times, but not
    nested.

    Args:
        module: any module; a forward must not change its parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = list(module.modules())
        self._saved_modes = [_modes(one) for one in self._modules]
        self._saved_buffers = [_copies(one) for one in self._modules]

    def __enter__(self) -> None:
        self._modes_before = [_modes(one) for one in self._modules]
        self._buffers_before = [dict(one._buffers) for one in self._modules]
        for module, modes, buffers in zip(
            self._modules, self._saved_modes, self._saved_buffers, strict=True
        ):
            vars(module).update(modes)
            # new copies: autograd may hold those of an earlier entry
            module._buffers.update({k: v.clone() for k, v in buffers.items()})

    def __exit__(self, *_: object) -> None:
        previous = zip(self._modules, self._modes_before, self._buffers_before, strict=True)
        for module, modes, buffers in previous:
            vars(module).update(modes)
            module._buffers.update(buffers)


def _modes(module: nn.Module) -> dict[str, bool]:
    flags = ("training", "track_running_stats")
    return {name: vars(module)[name] for name in flags if name in vars(module)}


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module._buffers.items() if v is not None}


class FullPrecision(nn.Module):
    """Network as attacks use it: logits in fp32 at least, and a private copy of each input.

    Attacks combine logits with their own fp32 numbers, and a network that changes its input must
    not change the images of the attack.

    Args:
        model: maps x (B, C, H, W) to logits (B, K).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, C, H, W) to logits (B, K), fp32 at least."""
        return full_precision(self.model(x.clone()))


def full_precision(logits: Tensor) -> Tensor:
    """Returns logits (B, K) in fp32 at least: under autocast a network returns bf16."""
    return logits if logits.element_size() >= 4 else logits.float()
