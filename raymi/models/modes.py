"""How a network is used for a while: in eval mode, and with outputs in full precision."""

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


def full_precision(logits: Tensor) -> Tensor:
    """Logits in fp32 at least, (B, K): under autocast a network answers in bf16."""
    return logits if logits.element_size() >= 4 else logits.float()
