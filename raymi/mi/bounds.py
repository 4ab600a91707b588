"""Lower bounds on mutual information from a matrix of scores, per sample and in nats.

`T[i, j, p]` scores the output of sample i against location p of the pattern of sample j; the
diagonal holds the pairs that belong together. Each bound is the mean over locations. These are the
slow, obvious forms over a whole (B, B, P) matrix; `raymi.mi.matching` computes the same from
partial sums, without holding the matrix on one worker.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def infonce(scores: Tensor) -> Tensor:
    """InfoNCE: a stable bound that cannot exceed log B; the one to train with.

    Args: scores (B, B, P).
    Returns: (B,) nats, each at most log B.
    Source: van den Oord et al. 2018, Eq. 4; the positive is one of the B candidates.
    """
    # mean_p T_iip - log (1/B) sum_j exp T_ijp
    positive = _diagonal(scores)
    return (positive - torch.logsumexp(scores, dim=1) + math.log(len(scores))).mean(dim=1)


def donsker_varadhan(scores: Tensor) -> Tensor:
    """Donsker-Varadhan with the positive left out of the negatives: less biased, unbounded above.

    Unchanged by adding a constant to all scores.

    Args: scores (B, B, P).
    Returns: (B,) nats; zeros for B = 1, where there are no negatives.
    Source: Belghazi et al. 2018, Eq. 5; Hjelm et al. 2019, Eq. 2.
    """
    # mean_p T_iip - log (1/(B-1)) sum_{j != i} exp T_ijp
    num = len(scores)
    if num == 1:
        return 0 * _diagonal(scores).mean(dim=1)
    others = scores.masked_fill(_own_pairs(scores), -math.inf)
    negatives = torch.logsumexp(others, dim=1) - math.log(num - 1)
    return (_diagonal(scores) - negatives).mean(dim=1)


def jensen_shannon(scores: Tensor) -> Tensor:
    """Jensen-Shannon divergence objective of Deep InfoMax: robust to train with, not MI in nats.

    Args: scores (B, B, P).
    Returns: (B,), each at most 2 log 2; the positive part alone where B = 1.
    Source: Hjelm et al. 2019, Eq. 4, shifted by 2 log 2 as in the f-GAN form.
    """
    # mean_p [log 2 - sp(-T_iip)] - mean_{j != i, p} [sp(T_ijp) - log 2]
    num = len(scores)
    positive = math.log(2) - F.softplus(-_diagonal(scores))
    divergence = (F.softplus(scores) - math.log(2)).masked_fill(_own_pairs(scores), 0.0)
    negative = divergence.sum(dim=1) / max(num - 1, 1)
    return (positive - negative).mean(dim=1)


def _diagonal(scores: Tensor) -> Tensor:
    """(B, B, P) -> (B, P): the scores of the pairs that belong together."""
    return scores.diagonal(dim1=0, dim2=1).T


def _own_pairs(scores: Tensor) -> Tensor:
    """(B, B, 1) bool, true where output and pattern are of the same sample."""
    return torch.eye(len(scores), dtype=torch.bool, device=scores.device)[:, :, None]
