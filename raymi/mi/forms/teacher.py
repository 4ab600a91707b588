"""KL divergences from the output of an averaged classifier, without estimators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from raymi.fields import value_at
from raymi.mi.forms.base import MITerm, TermContext

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raymi.collectives import Metrics, Shard
    from raymi.mi.settings import MIConfig


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

    title = "teacher"
    defaults: ClassVar[Mapping[str, Any]] = {
        "weight": 1.0,
        "teacher_temperature": 1.0,
        "mix": False,
    }
    keys = frozenset({"natural", "adversarial", "teacher_temperature", "teacher_ema", "mix"})
    averages_model = True
    closed_form = True

    def __init__(
        self,
        model: nn.Module,
        mi: MIConfig,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        micro_batch: int | None = None,
    ) -> None:
        from raymi.models.ema import WeightEMA

        self.model, self.mi, self.autocast, self.micro_batch = model, mi, autocast, micro_batch
        self.average = WeightEMA(model, mi.teacher_ema)
        self.averages = (self.average,)
        self._log_r: Tensor | None = None
        self._metrics: Metrics = {}

    @classmethod
    def build(cls, context: TermContext) -> Teacher:
        """Builds the term, with an average of the classifier of a phase."""
        assert context.model is not None
        return cls(context.model, context.mi, context.autocast, context.micro_batch)

    def target(self, x: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Computes r for the step, and returns the labels; with `mi.mix` (b, K) refined ones."""
        from raymi.mi.divergences import refined_labels

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
        import torch
        import torch.nn.functional as F

        from raymi.mi.divergences import kl_divergence

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
        import torch
        import torch.nn.functional as F

        from raymi.models.micro_batches import in_pieces
        from raymi.models.modes import evaluation_mode, full_precision

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
