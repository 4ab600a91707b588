"""Both forwards of the classifier in a step, the only part of it that is under DDP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from functools import partial

import torch
from torch import Tensor, nn

from raymi.collectives import Shard
from raymi.models.micro_batches import in_pieces
from raymi.models.modes import full_precision
from raymi.models.running_statistics import running_statistics_frozen, running_statistics_of

_ORDERS = {"mix": "na", "released": "ananaan"}
"""Order of natural and adversarial batches that update the running statistics in a step."""


class Clean(Enum):
    """Use of h(x) in a step."""

    UNUSED = 0
    VALUE = 1
    GRADIENT = 2


class ClassifierPair(nn.Module):
    """Outputs h(x) and h(x_adv) of a step, in one forward, so that DDP sees one backward.

    Args:
        model: the classifier, images in [0, 1] to logits.
        clean: use of h(x) in the step.
        inner: use of h(x) in AWP's inner pass.
        batchnorm: batches that update the running statistics, see `loss.batchnorm`.
        autocast: returns the context in which the classifier runs.
        micro_batch: samples of a worker per pass of the classifier; None: all.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: Clean,
        inner: Clean,
        batchnorm: str = "adversarial",
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.micro_batch = micro_batch
        self._gradient = clean == Clean.GRADIENT
        self._outputs, self._inner = self._adversarial_alone, self._adversarial_alone
        if batchnorm in _ORDERS:
            self._outputs = partial(self._in_order, _ORDERS[batchnorm])
        elif clean != Clean.UNUSED:
            self._outputs = self._clean_frozen
        if inner == Clean.GRADIENT:
            self._inner = self._adversarial_first

    def forward(
        self, x: Tensor, x_adv: Tensor, shard: Shard, *, inner: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Computes (h(x), h(x_adv)), (b, K) each, in train mode.

        The batches that `batchnorm` names update the running statistics: by default the adversarial
        one alone, as in plain AT. h(x) has a gradient only if a loss needs it, and is (b, 0) if
        nothing uses it.

        Args:
            x: (b, 3, H, W) in [0, 1].
            x_adv: (b, 3, H, W) in [0, 1].
            shard: place of the samples in the global batch.
            inner: compute the outputs of the adversarial loss alone, for AWP's inner pass.
        """
        return (self._inner if inner else self._outputs)(x, x_adv, shard)

    def _adversarial_alone(self, x: Tensor, x_adv: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
        return x.new_zeros(len(x), 0), self._logits(x_adv, shard)

    def _adversarial_first(self, x: Tensor, x_adv: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
        logits_adv = self._logits(x_adv, shard)
        return self._logits(x, shard), logits_adv

    def _clean_frozen(self, x: Tensor, x_adv: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
        with running_statistics_frozen(self.model):
            logits = self._logits(x, shard, gradient=self._gradient)
        return logits, self._logits(x_adv, shard)

    def _in_order(
        self, order: str, x: Tensor, x_adv: Tensor, shard: Shard
    ) -> tuple[Tensor, Tensor]:
        with running_statistics_of(self.model, order) as record:
            logits = self._logits(x, shard, gradient=self._gradient)
            record("n")
            logits_adv = self._logits(x_adv, shard)
            record("a")
        return logits, logits_adv

    def _logits(self, x: Tensor, shard: Shard, *, gradient: bool = True) -> Tensor:
        def forward(piece: Tensor) -> Tensor:
            # An autocast context per forward: older torch caches cast weights, also those that a
            # forward without gradient has cast.
            with self.autocast():
                return full_precision(self.model(piece))

        with torch.set_grad_enabled(gradient):
            return in_pieces(forward, self.model, x, shard, self.micro_batch)
