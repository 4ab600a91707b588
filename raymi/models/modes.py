"""How a network is used for a while: in eval mode, once more, with outputs in full precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


class Repetition:
    """A context in which a forward that begins now can be made again, and computes the same.

    Inside, modules are in the mode of now, and buffers (running statistics, the vectors of spectral
    norm) are copies of those of now, so that what the forward does to them is forgotten. Afterwards
    modules have the modes and the very buffers that they had. It can be entered many times, not
    within itself.

    Args: module, any; a forward must not change its parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = list(module.modules())
        self._now = [_modes(one) for one in self._modules]
        self._values = [_copies(one) for one in self._modules]

    def __enter__(self) -> None:
        self._modes_before = [_modes(one) for one in self._modules]
        self._buffers_before = [dict(one._buffers) for one in self._modules]
        for module, modes, buffers in zip(self._modules, self._now, self._values, strict=True):
            vars(module).update(modes)
            # Copies again: what autograd keeps of this time must not change the next time.
            module._buffers.update({k: v.clone() for k, v in buffers.items()})

    def __exit__(self, *_: object) -> None:
        then = zip(self._modules, self._modes_before, self._buffers_before, strict=True)
        for module, modes, buffers in then:
            vars(module).update(modes)
            module._buffers.update(buffers)


def _modes(module: nn.Module) -> dict[str, bool]:
    flags = ("training", "track_running_stats")
    return {name: vars(module)[name] for name in flags if name in vars(module)}


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module._buffers.items() if v is not None}


class FullPrecision(nn.Module):
    """A network as attacks use it: logits in fp32 at least, and a private copy of each input.

    Attacks write numbers of their own beside the logits; and a network that changes its input
    must not change the images of the attack.

    Args:
        model: maps x (B, C, H, W) to logits (B, K).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, C, H, W). Returns: logits (B, K), fp32 at least."""
        return full_precision(self.model(x.clone()))


def full_precision(logits: Tensor) -> Tensor:
    """Logits in fp32 at least, (B, K): under autocast a network answers in bf16."""
    return logits if logits.element_size() >= 4 else logits.float()
