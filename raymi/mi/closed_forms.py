"""MI terms without estimators: divergences of outputs that bound or equal an MI, per sample.

p = softmax(h(x)) and p' = softmax(h(x_adv)); Yhat is a label drawn from p'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.collectives import Metrics, Shard
from raymi.fields import value_at
from raymi.mi.settings import MIConfig
from raymi.mi.terms import MITerm
from raymi.models.ema import WeightEMA
from raymi.models.micro_batches import in_pieces
from raymi.models.modes import evaluation_mode, full_precision


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


class JensenShannon(MITerm):
    """Jensen-Shannon divergence of natural and adversarial output, an MI of at most log 2."""

    closed_form = True
    needs_clean = True
    needs_clean_gradient = True

    def __call__(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> tuple[Tensor | None, Metrics]:
        """Returns the mean divergence in nats, and it as a metric."""
        loss = shard.mean(jensen_shannon(logits, logits_adv))
        return loss, {"mi/js": loss.detach()}


class Teacher(MITerm):
    """KL divergences between p' and the output r of an averaged classifier at the natural image.

    As r does not depend on the noise N, I(Yhat; N | X) <= E KL(p' || r). For the teacher's code
    T ~ r, I(T; X_adv) >= H(T) - E CE(r, p'). So the reverse KL lowers an upper bound of adversarial
    MI, the forward one raises a lower bound of natural MI. H(T) is of the mean of r over a batch,
    which underestimates it.

    With `mi.mix` the divergences are not added; the adversarial loss and its attack have
    `refined_labels` as their target (ADR).

    Args:
        model: the bare classifier, which the average follows.
        mi: settings.
        autocast: returns the context in which the classifier runs.
        micro_batch: samples of a worker per pass of the average; None: all.

    Attributes:
        average: of the classifier's weights and statistics; updated after each step.
    """

    closed_form = True

    def __init__(
        self,
        model: nn.Module,
        mi: MIConfig,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        micro_batch: int | None = None,
    ) -> None:
        self.model, self.mi, self.autocast, self.micro_batch = model, mi, autocast, micro_batch
        self.average = WeightEMA(model, mi.teacher_ema)
        self.averages = (self.average,)
        self._log_r: Tensor | None = None
        self._metrics: Metrics = {}

    def target(self, x: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Computes r for the step, and returns the labels; with `mi.mix` (b, K) refined ones."""
        self._log_r = self._reference(x, shard)
        r = self._log_r.exp()
        self._metrics = {"mi/teacher_max": shard.mean(r.amax(dim=1))}
        if not self.mi.mix:
            return y
        target, share = refined_labels(r, y, value_at(self.mi.weight or 0.0, self.progress))
        self._metrics["mi/teacher_share"] = shard.mean(share)
        return target

    def __call__(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> tuple[Tensor | None, Metrics]:
        """Computes the sum of both divergences, and the bounds in nats; call `target` first."""
        # KL(r || p') + KL(p' || r)
        assert self._log_r is not None
        log_r, log_p = self._log_r, F.log_softmax(logits_adv, dim=1)
        forward = shard.mean(kl_divergence(log_r, log_p))
        reverse = shard.mean(kl_divergence(log_p, log_r))
        r = log_r.exp()
        mean_r = shard.sum(r.sum(dim=0)) / shard.num
        entropy, cross_entropy = torch.special.entr(mean_r).sum(), -(r * log_p).sum(dim=1).detach()
        metrics = {
            "mi/adversarial_upper": reverse.detach(),
            "mi/natural_lower": entropy - shard.mean(cross_entropy),
            **self._metrics,
        }
        if self.mi.mix:
            return None, metrics
        terms = [forward] if self.mi.natural else []
        terms += [reverse] if self.mi.adversarial else []
        return torch.stack(terms).sum(), metrics

    def _reference(self, x: Tensor, shard: Shard) -> Tensor:
        """Returns log r (b, K), of the classifier itself before the first step."""
        network = self.average.model if self.average.steps > 0 else self.model
        with evaluation_mode(network), torch.no_grad(), self.autocast():
            logits = full_precision(in_pieces(network, network, x, shard, self.micro_batch))
        temperature = value_at(self.mi.teacher_temperature, self.progress)
        return F.log_softmax(logits / temperature, dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the averaged weights."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the averaged weights."""
        self.average.load_state_dict(state)
