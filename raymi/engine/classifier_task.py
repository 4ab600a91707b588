"""Task of the classifier: a module whose forward maps a batch to the loss of Eq. 9.

DDP wraps the task, so that each backward has one DDP forward, while PGD attacks the bare
classifier. Losses and metrics follow the convention of `raymi.collectives`: their mean over workers
is the value for the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from raymi.collectives import Collectives
from raymi.engine.estimator_task import Metrics, score_outputs
from raymi.engine.micro_batches import in_pieces
from raymi.losses import at_loss, mart_loss, trades_loss
from raymi.losses.settings import LossConfig
from raymi.mi.balance import balanced_weight, global_norm, gradients_at, with_gradient
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.frozen import sloped_estimates
from raymi.mi.objectives import PairMI, classifier_mi_loss, global_mean, selected
from raymi.mi.reference import selected_over_batch
from raymi.mi.settings import MIConfig
from raymi.models.modes import evaluation_mode, full_precision
from raymi.models.running_statistics import running_statistics_frozen, running_statistics_of

_ORDERS = {"mix": "na", "released": "ananaan"}
"""Order of natural and adversarial batches that update the running statistics in a step."""

_FLOORS = {"infonce": 0.0, "jsd": 0.0, "hellinger": 0.0, "gan": -2 * math.log(2)}
"""Values of capped bounds for independent variables, at which a minimised term is clamped."""

LearnFromOutputs = Callable[[Tensor, Tensor], None]


class ClassifierTask(nn.Module):
    """Task of the classifier: adversarial loss plus weighted MI loss (Eq. 9).

    Args:
        model: the classifier, images in [0, 1] to logits.
        loss, mi: their settings; MI is off where `mi.enabled` is false.
        estimators: frozen here: eval mode, no gradients; None: MI is off.
        group: the workers.
        autocast: returns the context in which the classifier runs; losses are outside of it.
        micro_batch: samples of a worker per pass of a network; None: all.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossConfig,
        mi: MIConfig,
        estimators: MIEstimators | None,
        group: Collectives,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.mi = mi
        self.group = group
        self.autocast = autocast
        self.micro_batch = micro_batch
        self._frozen = (estimators,)  # in a tuple: not a submodule, as it is not trained here
        self.clean_has_gradient = loss.base != "at" or (estimators is not None and mi.cosine > 0)
        self.random_gradient = mi.enabled and mi.gradient == "random"
        self.clean_is_used = (
            self.clean_has_gradient or estimators is not None or loss.batchnorm != "adversarial"
        )

    def forward(
        self,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        shard_sizes: list[int],
        learn: LearnFromOutputs | None = None,
        *,
        noise: Callable[[Tensor], Tensor] | None = None,
        adversarial_only: bool = False,
    ) -> tuple[Tensor, Metrics]:
        """Computes the loss of the global batch (Eq. 9), and metrics.

        Args:
            x, x_adv: (b, 3, H, W) in [0, 1]. y: (b,). shard_sizes: samples of each worker.
            learn: called with the detached outputs (h(x), h(x_adv)) before the MI loss: the joint
                schedule updates the estimators there.
            noise: returns Gaussian noise in the shape of its argument, for mi.gradient=random.
            adversarial_only: the base method's loss alone, without updates of running statistics.
        """
        num = sum(shard_sizes)
        if adversarial_only:
            return self._adversarial_only(x, x_adv, y, shard_sizes)
        logits, logits_adv = self.forward_pair(x, x_adv, shard_sizes)
        if learn is not None and num > 1:
            learn(logits.detach(), logits_adv.detach())
        loss_adv = self.adversarial_loss(logits, logits_adv, y, num)
        metrics = {
            "loss_adv": loss_adv.detach(),
            "robust_acc": self._accuracy(logits_adv, y, num),
        }
        if self.clean_is_used:
            metrics["clean_acc"] = self._accuracy(logits, y, num)
        (estimators,) = self._frozen
        mi_metrics: Metrics = {}
        if self.random_gradient:
            assert noise is not None
            products = (noise(logits_adv.detach()) * logits_adv).sum(dim=1)
            loss_mi = global_mean(products, None, num, self.group)
        elif estimators is not None and num > 1:  # one sample has no negatives
            loss_mi, mi_metrics = self.mi_loss(
                estimators, x, x_adv, logits, logits_adv, y, shard_sizes
            )
        else:
            return loss_adv, {"loss": loss_adv.detach(), **metrics}

        outputs = [logits, logits_adv] if self.clean_has_gradient else [logits_adv]
        grads_adv, grads_mi = gradients_at(loss_adv, outputs), gradients_at(loss_mi, outputs)
        norm_adv, norm_mi = global_norm(grads_adv, self.group), global_norm(grads_mi, self.group)
        if self.mi.balance is None:
            weight = torch.full_like(norm_mi, self.mi.weight or 0.0)
        else:
            weight = balanced_weight(norm_mi, norm_adv, self.mi.balance, self.mi.alpha_max)
        grads = [g_adv + weight * g_mi for g_adv, g_mi in zip(grads_adv, grads_mi, strict=True)]
        value = (loss_adv + weight * loss_mi).detach()
        return with_gradient(value, outputs, grads), {
            "loss": value,
            "loss_mi": loss_mi.detach(),
            "mi/weight": weight,
            "mi/grad_norm": weight * norm_mi,
            "grad_norm_adv": norm_adv,
            **metrics,
            **mi_metrics,
        }

    def _adversarial_only(
        self, x: Tensor, x_adv: Tensor, y: Tensor, shard_sizes: list[int]
    ) -> tuple[Tensor, Metrics]:
        with running_statistics_frozen(self.model):
            logits_adv = self._forward(x_adv, shard_sizes)
            logits = logits_adv if self.loss.base == "at" else self._forward(x, shard_sizes)
        return self.adversarial_loss(logits, logits_adv, y, sum(shard_sizes)), {}

    def forward_pair(
        self, x: Tensor, x_adv: Tensor, shard_sizes: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Computes (h(x), h(x_adv)), (b, K) each, in two forwards in train mode.

        The batches that `loss.batchnorm` names update the running statistics: by default the
        adversarial one alone, as in plain AT. h(x) has a gradient only if a loss needs it, and is
        empty if nothing uses it.
        """
        if not self.clean_is_used:
            return x.new_zeros(len(x), 0), self._forward(x_adv, shard_sizes)
        if self.loss.batchnorm == "adversarial":
            with running_statistics_frozen(self.model):
                logits = self._forward(x, shard_sizes, gradient=self.clean_has_gradient)
            return logits, self._forward(x_adv, shard_sizes)
        with running_statistics_of(self.model, _ORDERS[self.loss.batchnorm]) as record:
            logits = self._forward(x, shard_sizes, gradient=self.clean_has_gradient)
            record("n")
            logits_adv = self._forward(x_adv, shard_sizes)
            record("a")
        return logits, logits_adv

    def _forward(self, x: Tensor, shard_sizes: list[int], *, gradient: bool = True) -> Tensor:
        def forward(piece: Tensor) -> Tensor:
            # An autocast context per forward: older torch caches cast weights, also those that a
            # forward without gradient has cast.
            with self.autocast():
                return full_precision(self.model(piece))

        with torch.set_grad_enabled(gradient):
            return in_pieces(forward, self.model, x, shard_sizes, self.micro_batch)

    def adversarial_loss(self, logits: Tensor, logits_adv: Tensor, y: Tensor, num: int) -> Tensor:
        """Computes the base method's 0-d loss."""
        world = self.group.world_size
        if self.loss.base == "at":
            return at_loss(logits_adv, y, num, world, self.loss.label_smoothing)
        base = trades_loss if self.loss.base == "trades" else mart_loss
        return base(logits, logits_adv, y, num, world, self.loss.beta or 0.0)

    def mi_loss(
        self,
        estimators: MIEstimators,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard_sizes: list[int],
    ) -> tuple[Tensor, Metrics]:
        """Computes L_mi of Eq. 8 (0-d) by the frozen estimators, and mean estimates in nats."""
        mi, num = self.mi, sum(shard_sizes)
        mask = None
        if mi.samples == "selected":
            mask = selected(logits, logits_adv, y)
        elif mi.samples == "selected-released":
            mask, _ = selected_over_batch(logits, logits_adv, y, self.group)
        candidates = max(shard_sizes) if mi.negatives == "local" else num
        natural_range = adversarial_range = (-math.inf, math.inf)
        if mi.clamp and mi.bound in ("dv", "dv-released"):
            natural_range = adversarial_range = (0.0, math.log(max(candidates - 1, 1)))
        elif mi.clamp:
            adversarial_range = (_FLOORS.get(mi.bound, -math.inf), math.inf)
        with evaluation_mode(estimators):
            pattern = x if mi.natural_pattern == "clean" else x_adv
            natural = self._pair_mi(estimators.natural, pattern, logits, logits_adv, shard_sizes)
            adversarial = self._pair_mi(
                estimators.adversarial, x_adv - x, logits, logits_adv, shard_sizes
            )
        loss = classifier_mi_loss(
            natural,
            adversarial,
            mask,
            num,
            self.group,
            difference=mi.difference,
            cosine=mi.cosine,
            natural_range=natural_range,
            adversarial_range=adversarial_range,
        )
        metrics = {
            f"mi/{name}_of_adversarial": global_mean(
                kind.of_adversarial.detach(), None, num, self.group
            )
            for name, kind in (("natural", natural), ("adversarial", adversarial))
            if kind is not None
        }
        if mask is not None:
            metrics["mi/selected"] = global_mean(mask.to(loss.dtype), None, num, self.group)
        return loss, metrics

    def _pair_mi(
        self,
        estimator: LocalDIM | None,
        u: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        shard_sizes: list[int],
    ) -> PairMI | None:
        if estimator is None:
            return None
        with torch.no_grad():
            features = in_pieces(
                estimator.local_features, estimator, u, shard_sizes, self.micro_batch
            )

        def estimate(z: Tensor) -> Tensor:
            scores = score_outputs(estimator, z, features, shard_sizes, self.mi, self.group)
            return scores.bound(self.mi.bound)

        outputs = [logits_adv, logits] if self.mi.cosine > 0 else [logits_adv]
        return PairMI(*(sloped_estimates(estimate, z) for z in outputs))

    def _accuracy(self, logits: Tensor, y: Tensor, num: int) -> Tensor:
        right = (logits.detach().argmax(dim=1) == y).to(torch.float64)
        return global_mean(right, None, num, self.group)
