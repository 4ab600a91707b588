"""Jensen-Shannon divergence of outputs, without estimators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from raymi.mi.forms.base import MITerm

if TYPE_CHECKING:
    from torch import Tensor

    from raymi.collectives import Metrics, Shard


class JensenShannon(MITerm):
    """Jensen-Shannon divergence of natural and adversarial output, an MI of at most log 2."""

    title = "JS"
    defaults: ClassVar[Mapping[str, Any]] = {"weight": "linear:0:10"}
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
        from raymi.mi.divergences import jensen_shannon

        # JS(p, p')
        loss = shard.mean(jensen_shannon(logits, logits_adv))
        return loss, {"mi/js": loss.detach()}
