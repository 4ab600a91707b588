"""Which forwards a BatchNorm's running statistics follow.

A step of NAMID sends two batches through one network. Which of them the running statistics follow
is a choice that alone moved robust accuracy by several points: it must not happen by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def running_statistics_frozen(module: nn.Module) -> Iterator[None]:
    """Within it, train-mode forwards use batch statistics and leave the running ones untouched.

    Modules in eval mode go on using their running statistics.

    Args: module, any; every BatchNorm inside it takes part.
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
    """Running statistics as if the batches had gone through in `order`, each forward being made
    once.

    Inside, call the yielded function with a batch's letter right after its train-mode forward.
    The released code's seven forwards of a step are order "ananaan", a for adversarial, n for
    natural.

    Args: module; order, letters of batches.
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
                # autograd has saved the statistics, though in train mode backward does not use
                # them: written through .data, it does not take them for changed
                norm.get_buffer(name).data.copy_(value)


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()
