"""Lower bounds on mutual information from a matrix of scores, and other objectives over it.

`T[i, j, p]` scores the output of sample i against location p of the pattern of sample j; the
diagonal has the matching pairs. Each value is the mean over locations. These are the slow, obvious
forms over a whole (B, B, P) matrix; `raymi.mi.matching` computes the same from partial sums,
without the whole matrix on one worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def infonce(scores: Tensor) -> Tensor:
    """Computes InfoNCE, a stable bound of at most log B; the one to train with.

    Args:
        scores: (B, B, P).

    Returns:
        (B,) nats, each at most log B.

    Source: van den Oord et al. 2018, Eq. 4; the positive is one of the B candidates.
    """
    # mean_p T_iip - log (1/B) sum_j exp T_ijp
    positive = _diagonal(scores)
    return (positive - torch.logsumexp(scores, dim=1) + math.log(len(scores))).mean(dim=1)


def donsker_varadhan(scores: Tensor) -> Tensor:
    """Computes Donsker-Varadhan without the positive among the negatives; unbounded above.

    It is invariant to a constant added to all scores.

    Args:
        scores: (B, B, P).

    Returns:
        (B,) nats; zeros for B = 1, without negatives.

    Source: Belghazi et al. 2018, Eq. 5; Hjelm et al. 2019, Eq. 2.
    """
    # mean_p T_iip - log (1/(B-1)) sum_{j != i} exp T_ijp
    num = len(scores)
    if num == 1:
        return 0 * _diagonal(scores).mean(dim=1)
    others = scores.masked_fill(_own_pairs(scores), -math.inf)
    negatives = torch.logsumexp(others, dim=1) - math.log(num - 1)
    return (_diagonal(scores) - negatives).mean(dim=1)


def reference_donsker_varadhan(scores: Tensor) -> Tensor:
    """Computes Donsker-Varadhan as in the authors' code, to reproduce its numbers.

    The positive is one of the negatives, with score 0. So it is no bound, and changes when a
    constant is added to all scores.

    Args:
        scores: (B, B, P).

    Returns:
        (B,) nats.
    """
    # mean_p T_iip - log (1/(B-1)) (exp 0 + sum_{j != i} exp T_ijp)
    zeroed = scores.masked_fill(_own_pairs(scores), 0.0)
    negatives = torch.logsumexp(zeroed, dim=1) - math.log(max(len(scores) - 1, 1))
    return (_diagonal(scores) - negatives).mean(dim=1)


class FDivergence(NamedTuple):
    """Objective E[positive(T)] - E[negative(T)], each term elementwise.

    The first mean is over matching pairs, the second over all others.
    """

    positive: Callable[[Tensor], Tensor]
    negative: Callable[[Tensor], Tensor]


F_DIVERGENCES: dict[str, FDivergence] = {
    # log 2 - softplus(-p); softplus(q) - log 2. At most 2 log 2.
    "jsd": FDivergence(
        lambda p: math.log(2) + F.logsigmoid(p), lambda q: -F.logsigmoid(-q) - math.log(2)
    ),
    # The same without log 2. At most 0, and -2 log 2 for constant scores of 0.
    "gan": FDivergence(F.logsigmoid, lambda q: -F.logsigmoid(-q)),
    "kl": FDivergence(lambda p: p, lambda q: torch.exp(q - 1)),
    "rkl": FDivergence(lambda p: -torch.exp(-p), lambda q: q - 1),
    # Grows without limit in every score, in both terms: as in the authors' code.
    "chi2": FDivergence(lambda p: p**2, lambda q: -((q.abs() + 1) ** 2) / 2),
    # At most 2.
    "hellinger": FDivergence(lambda p: 1 - torch.exp(-p), lambda q: torch.exp(q) - 1),
    "wasserstein": FDivergence(lambda p: p, lambda q: q),
}


def f_divergence(scores: Tensor, name: str) -> Tensor:
    """Computes an f-divergence objective: high for matching pairs, low for all others.

    It is not MI in nats. "jsd", the choice of Deep InfoMax, trains robustly.
    All but "jsd", "gan" and "hellinger" can grow without limit with the scores, and the
    exponentials of "kl", "rkl" and "hellinger" overflow: use them with cosine scores.

    Args:
        scores: (B, B, P).
        name: key of `F_DIVERGENCES`.

    Returns:
        (B,); the positive part alone where B = 1.

    Source: Hjelm et al. 2019, Eq. 4 and App. A; Nowozin et al. 2016, Table 6. Terms as in the
        released code.
    """
    # mean_p [positive(T_iip)] - mean_{j != i, p} [negative(T_ijp)]
    term = F_DIVERGENCES[name]
    own, num = _own_pairs(scores), len(scores)
    # masked on both sides: exp of an own score may overflow, with gradient 0 * inf
    negative = term.negative(scores.masked_fill(own, 0.0)).masked_fill(own, 0.0)
    return (term.positive(_diagonal(scores)) - negative.sum(dim=1) / max(num - 1, 1)).mean(dim=1)


def reference_infonce(scores: Tensor) -> Tensor:
    """Computes InfoNCE as in the authors' code, to reproduce its numbers.

    The positive T[i, i, p] competes with *all locations* of the other samples, and with P entries
    of -10 for the same sample; `infonce` compares at the same location only and has no such
    entries. The log of the number of candidates is not added. So it is not MI in nats, is never
    above 0, and changes when a constant is added to all scores.

    Args:
        scores: (B, B, P).

    Returns:
        (B,), each at most 0.
    """
    # mean_p T_iip - log (exp T_iip + P exp(-10) + sum_{j != i, q} exp T_ijq)
    candidates = scores.masked_fill(_own_pairs(scores), -10.0).flatten(1)
    positive = _diagonal(scores)
    negatives = torch.logsumexp(candidates, dim=1, keepdim=True)
    return (positive - torch.logaddexp(positive, negatives)).mean(dim=1)


def _diagonal(scores: Tensor) -> Tensor:
    """Returns the scores of matching pairs, (B, P), of (B, B, P)."""
    return scores.diagonal(dim1=0, dim2=1).T


def _own_pairs(scores: Tensor) -> Tensor:
    """Returns (B, B, 1) bool, true where output and pattern belong to the same sample."""
    return torch.eye(len(scores), dtype=torch.bool, device=scores.device)[:, :, None]
