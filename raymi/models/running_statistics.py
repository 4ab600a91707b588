"""Control over the forwards that update BatchNorm's running statistics.

A step of NAMID sends two batches through one network. The choice of the batches that update the
running statistics alone changed robust accuracy by several points, so it is explicit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def running_statistics_frozen(module: nn.Module) -> Iterator[None]:
    """Keeps running statistics unchanged in train-mode forwards, which use batch statistics.

    Modules in eval mode use their running statistics.

    Args:
        module: module whose BatchNorms are affected.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    flags = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, flag in zip(norms, flags, strict=True):
            norm.track_running_stats = flag


@contextmanager
def running_statistics_of(module: nn.Module, order: str) -> Iterator[Callable[[str], None]]:
    """Updates running statistics as if batches had been forwarded in `order`.

    Each batch is forwarded once. Inside, call the yielded function with a batch's letter right
    after its train-mode forward. The seven forwards of the authors' code are "ananaan", a for
    adversarial, n for natural.

    Args:
        module: module whose BatchNorms are affected.
        order: letters of batches.
    """
    norms = [
        norm
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats
    ]
    before = [
        (*_statistics(norm), norm.get_buffer("num_batches_tracked").clone()) for norm in norms
    ]
    momenta = [norm.momentum for norm in norms]
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def record(letter: str) -> None:
        seen[letter] = [_statistics(norm) for norm in norms]

    try:
        for norm in norms:
            norm.momentum = 1.0  # the running statistics become those of the batch
        yield record
    finally:
        complete = set(order) <= set(seen)
        for k, (norm, momentum) in enumerate(zip(norms, momenta, strict=True)):
            norm.momentum = momentum
            mean, var, count = before[k]
            for step, letter in enumerate(order if complete else "", start=1):
                share = 1 / (count + step) if momentum is None else momentum
                mean = (1 - share) * mean + share * seen[letter][k][0]
                var = (1 - share) * var + share * seen[letter][k][1]
            total = count + (len(order) if complete else 0)
            values = {"running_mean": mean, "running_var": var, "num_batches_tracked": total}
            for name, value in values.items():
                # autograd saved the statistics, though backward in train mode does not use them:
                # writes through .data do not count as changes
                norm.get_buffer(name).data.copy_(value)


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()
