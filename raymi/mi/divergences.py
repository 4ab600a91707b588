"""Divergences of a classifier's outputs that bound or equal an MI, per sample in nats.

p = softmax(h(x)) and p' = softmax(h(x_adv)); Yhat is a label drawn from p'.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Computes KL(p || q) of log-probabilities (b, K): (b,) nats."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def jensen_shannon(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """Computes JS(p, p') of logits (b, K): (b,) nats, each at most log 2.

    It equals I(Yhat; B | X, N) for a fair coin B that chooses p or p'.
    """
    # [KL(p || m) + KL(p' || m)] / 2,  m = (p + p') / 2
    log_p, log_q = F.log_softmax(logits, dim=1), F.log_softmax(logits_adv, dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (kl_divergence(log_p, log_m) + kl_divergence(log_q, log_m)) / 2


def refined_labels(r: Tensor, y: Tensor, trust: float) -> tuple[Tensor, Tensor]:
    """Mixes labels with the output of a teacher, trusted less where it prefers another class.

    Args:
        r: (b, K) probabilities of the teacher.
        y: (b,).
        trust: largest share of the teacher.

    Returns:
        (b, K) targets; (b,) shares of the teacher.

    Source: Wu et al. 2024 (ADR, arXiv 2305.12118), Eq. 4 and 5.
    """
    # l r + (1 - l) onehot(y),  l = clip(trust - (max r - r[y]), 0, 1)
    share = (trust - (r.amax(dim=1) - r.gather(1, y[:, None])[:, 0])).clamp(0, 1)
    labels = F.one_hot(y, r.shape[1]).to(r.dtype)
    return share[:, None] * r + (1 - share[:, None]) * labels, share
