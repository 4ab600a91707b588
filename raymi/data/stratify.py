"""Stratified selection of samples: the same share of every class."""

from __future__ import annotations

import torch
from torch import Tensor

from raymi.counter_rng import permutation
from raymi.errors import UserError


def hold_out(labels: Tensor, fraction: float, key: int) -> tuple[Tensor, Tensor]:
    """Splits samples in two at random, stratified by class to within one sample.

    Args:
        labels: (N,) int64.
        fraction: share to hold out, in [0, 1); above 0, either side has at least one sample.
        key: from `raymi.counter_rng.random_key`; the split depends on `labels`, `fraction` and it.

    Returns:
        (remaining, held out): ascending indices, int64, a partition of all N.

    Raises:
        UserError: Fewer than two samples.
    """
    num_samples = len(labels)
    if fraction == 0:
        return torch.arange(num_samples), torch.arange(0)
    if num_samples < 2:
        raise UserError(
            f"cannot hold out {fraction:g} of {num_samples} samples: give at least 2, or fraction 0"
        )
    total = min(max(round(fraction * num_samples), 1), num_samples - 1)
    rank = _rank_in_class(labels, permutation(key, num_samples))
    held = rank < _quotas(torch.bincount(labels), fraction, total)[labels]
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def first_of_each_class(labels: Tensor, limit: int) -> Tensor:
    """Returns the first samples of every class in proportion to its size, `limit` in total.

    Args:
        labels: (N,) int64.
        limit: number of samples, at least 0.

    Returns:
        (min(limit, N),) int64, ascending indices.
    """
    num_samples = len(labels)
    if limit >= num_samples:
        return torch.arange(num_samples)
    rank = _rank_in_class(labels, torch.arange(num_samples))
    quotas = _quotas(torch.bincount(labels), limit / num_samples, limit)
    return (rank < quotas[labels]).nonzero()[:, 0]


def _quotas(counts: Tensor, fraction: float, total: int) -> Tensor:
    """Rounds `fraction` of each count down or up to the sum `total`, by largest remainders.

    Ties go to the class of the smaller number.

    Returns:
        (K,) int64.
    """
    exact = fraction * counts.double()
    quotas = exact.floor().long()
    missing = total - int(quotas.sum())
    rounded_up = torch.argsort(exact - quotas, descending=True, stable=True)[:missing]
    quotas[rounded_up] += 1
    return quotas


def _rank_in_class(labels: Tensor, order: Tensor) -> Tensor:
    """Returns for each sample the number of its class before it in `order`: (N,) int64."""
    by_class = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(labels)) - starts[labels[by_class]]
    return rank
