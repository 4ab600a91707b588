"""Contract of an adversarial loss, the first term of Eq. 9.

A loss is one class in one module of `raymi.losses`, which the registry finds. Modules of losses
import torch inside functions: help and refusals read settings and titles without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from raymi.fields import Section

if TYPE_CHECKING:
    from torch import Tensor

    from raymi.collectives import Collectives, Shard


class AdversarialLoss:
    """Loss of an adversarial training method, by default without settings or state.

    Attributes:
        title: name in reports.
        namid_title: name in reports of the loss with an MI term; empty: NAMID_{title}.
        attack_objective: maximised by the training attack, "ce" or "kl" (see `attacks.pgd`).
        needs_clean_gradient: whether the gradient at h(x) matters, or at h(x_adv) alone.
        takes_soft_targets: whether y may be probabilities (b, K), as of mixed images.
        progress: share of the phase that is over, in [0, 1); set before each step.
        settings: of this object.

    Args:
        **settings: values of `Settings`; missing ones have their defaults.
    """

    title: ClassVar[str]
    namid_title: ClassVar[str] = ""
    attack_objective: ClassVar[str] = "ce"
    needs_clean_gradient: ClassVar[bool] = False
    takes_soft_targets: ClassVar[bool] = False

    class Settings(Section):
        """Settings of the loss; the text under each field is its documentation."""

    def __init__(self, **settings: Any) -> None:
        self.settings = self.Settings(**settings)
        self.progress = 0.0

    def __call__(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Computes a loss whose mean over workers is the loss of the global batch.

        Args:
            logits: (b, K) of x; (b, 0) if neither the loss nor the MI term needs it.
            logits_adv: (b, K) of x_adv.
            y: (b,) labels, or (b, K) probabilities if the loss takes them.
            shard: place of the b samples in the global batch.

        Returns:
            0-d, usually shard.world_size * sum / shard.num (see `raymi.collectives`).
        """
        raise NotImplementedError

    def observe(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard) -> None:
        """Called once after each step with its detached outputs, of which a loss may keep sums.

        Arguments as of a call of the loss, which may be called twice in a step (AWP).
        """

    def end_epoch(self, group: Collectives) -> None:
        """Called after the last step of an epoch, on every worker at the same point."""

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain values for the checkpoint; the same on every worker."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the content of `state_dict`."""
