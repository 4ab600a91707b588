"""Adversarial losses that NAMID builds upon: AT, TRADES, MART.

Each takes the worker's own b samples and returns a loss whose mean over workers is the loss of the
global batch of `num` samples (see `raymi.collectives`): world_size * sum / num.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_loss(
    logits_adv: Tensor, y: Tensor, num: int, world_size: int = 1, label_smoothing: float = 0.0
) -> Tensor:
    """Adversarial training: cross-entropy of the adversarial output.

    Args:
        logits_adv: (b, K).
        y: (b,).
        num: samples in the global batch.

    Returns:
        0-d loss in nats.

    Source: Madry et al. 2018, Eq. 2.1.
    """
    # CE(h(x_adv), y)
    total = F.cross_entropy(logits_adv, y, reduction="sum", label_smoothing=label_smoothing)
    return world_size * total / num


def trades_loss(
    logits: Tensor, logits_adv: Tensor, y: Tensor, num: int, world_size: int = 1, beta: float = 6.0
) -> Tensor:
    """TRADES: natural cross-entropy plus beta times KL(p(x) || p(x_adv)).

    Args:
        logits: (b, K).
        logits_adv: (b, K).
        y: (b,).
        num: samples in the global batch.

    Returns:
        0-d loss in nats.

    Source: Zhang et al. 2019, Eq. 5. With log-probabilities on both sides, its gradient is finite
        where a class has probability 0 (torch's KL on probabilities gives NaN there).
    """
    # CE(h(x), y) + beta * KL(p || p_adv)
    log_p, log_p_adv = F.log_softmax(logits, dim=1), F.log_softmax(logits_adv, dim=1)
    natural = F.nll_loss(log_p, y, reduction="sum")
    robust = F.kl_div(log_p_adv, log_p, reduction="sum", log_target=True)
    return world_size * (natural + beta * robust) / num


def mart_loss(
    logits: Tensor, logits_adv: Tensor, y: Tensor, num: int, world_size: int = 1, beta: float = 5.0
) -> Tensor:
    """MART: boosted cross-entropy plus beta times the KL, weighted by natural misclassification.

    Args:
        logits: (b, K).
        logits_adv: (b, K).
        y: (b,).
        num: samples in the global batch.

    Returns:
        0-d loss in nats.

    Source: Wang et al. 2020, Eq. 8-11; 1.0001 and 1.0000001 as in the authors' code. The KL is of
        log-probabilities, as in `trades_loss`, where the authors add 1e-12 to probabilities.
    """
    # BCE = -log p_adv[y] - log(1 - max_{k != y} p_adv[k]);  + beta * KL(p || p_adv) (1 - p[y])
    log_p, log_p_adv = F.log_softmax(logits, dim=1), F.log_softmax(logits_adv, dim=1)
    p_adv, p_true = log_p_adv.exp(), log_p.exp().gather(1, y[:, None])[:, 0]
    runner_up = p_adv.scatter(1, y[:, None], 0).amax(dim=1)
    boosted = F.nll_loss(log_p_adv, y, reduction="sum") - torch.log(1.0001 - runner_up).sum()
    divergence = F.kl_div(log_p_adv, log_p, reduction="none", log_target=True).sum(dim=1)
    return world_size * (boosted + beta * (divergence * (1.0000001 - p_true)).sum()) / num
