"""Random gradient at the logits in place of the MI term's, a control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from raymi.mi.forms.base import MITerm

if TYPE_CHECKING:
    from torch import Tensor

    from raymi.collectives import Metrics, Shard


class RandomGradient(MITerm):
    """Control: Gaussian noise at h(x_adv) in place of the gradient of an MI loss."""

    title = "random gradient"
    defaults: ClassVar[Mapping[str, Any]] = {"balance": 0.2}
    keys = None

    def __call__(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> tuple[Tensor | None, Metrics]:
        """Returns the product of noise and outputs; arguments as of `MITerm`."""
        from raymi import counter_rng

        key = counter_rng.random_key("random gradient", shard.key)
        noise = counter_rng.normal(key, shard.index, (logits_adv.shape[1],)).to(logits_adv.dtype)
        return shard.mean((noise * logits_adv).sum(dim=1)), {}
