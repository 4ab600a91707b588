"""Contract of an MI term, the second term of Eq. 9.

A term is one class in one module of `raymi.mi.forms`, whose name is its `mi.form`; the registry
finds it. Modules of terms import torch inside functions: settings read the attributes of the
classes without it. Losses and metrics follow the convention of `raymi.collectives`: their mean over
workers is the value for the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raymi.collectives import Collectives, Metrics, Shard
    from raymi.mi.estimators import MIEstimators
    from raymi.mi.settings import MIConfig
    from raymi.models.ema import WeightEMA


@dataclass(frozen=True)
class TermContext:
    """Parts of a phase of which a term may be built.

    Attributes:
        mi: settings.
        estimators: of both kinds of MI; None: the form has none.
        model: the bare classifier; None in `raymi.NAMIDLoss`.
        autocast: returns the context in which the classifier runs.
        micro_batch: samples of a worker per pass of a network; None: all.
    """

    mi: MIConfig
    estimators: MIEstimators | None = None
    model: nn.Module | None = None
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    micro_batch: int | None = None


class MITerm:
    """MI term of the classifier's loss, by default none, without state.

    Attributes:
        title: name in reports, added to the loss's; empty: a form of NAMID.
        names_method: whether the title alone names the method where the loss is AT.
        defaults: of keys of `mi`.
        keys: of `mi` that it uses beside the weight; None: all but a teacher's.
        uses_estimators: whether it is built with raymi's estimators.
        averages_model: whether it keeps an average of the classifier.
        closed_form: whether its metrics are MI in nats of any block of images.
        needs_clean: whether h(x) is used.
        needs_clean_gradient: whether its gradient is used, too.
        progress: share of the phase that is over, in [0, 1); set before each step.
        averages: of the classifier's weights, which the term reads; updated after each step.
    """

    title: ClassVar[str] = ""
    names_method: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}
    keys: ClassVar[frozenset[str] | None] = frozenset()
    uses_estimators: ClassVar[bool] = False
    averages_model: ClassVar[bool] = False
    closed_form: ClassVar[bool] = False
    needs_clean: bool = False
    needs_clean_gradient: bool = False
    progress: float = 0.0
    averages: Sequence[WeightEMA] = ()

    @classmethod
    def build(cls, context: TermContext) -> MITerm:
        """Builds a term for a phase, by default without arguments."""
        return cls()

    def target(self, x: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Returns the target of the adversarial loss and of its attack, by default the labels.

        Called first in a step; arguments as of a call of the term.
        """
        return y

    def __call__(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> tuple[Tensor | None, Metrics]:
        """Computes L_mi (Eq. 8) and metrics.

        Args:
            x: (b, 3, H, W) in [0, 1].
            x_adv: (b, 3, H, W) in [0, 1].
            logits: (b, K) of x; (b, 0) if neither the loss nor the term needs it.
            logits_adv: (b, K) of x_adv.
            y: (b,).
            shard: place of the b samples in the global batch.

        Returns:
            0-d loss whose mean over workers is the global batch's, None if this batch has none;
            detached metrics, by name.
        """
        return None, {}

    def end_epoch(self, group: Collectives) -> None:
        """Called after the last step of an epoch, on every worker at the same point."""

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain values for the checkpoint; the same on every worker."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the content of `state_dict`."""
