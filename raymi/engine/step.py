"""Training step: attacks the batch, then updates the modules of the phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from raymi.attacks.pgd import pgd
from raymi.attacks.projections import start_of
from raymi.attacks.settings import AttackConfig
from raymi.collectives import Metrics, Shard
from raymi.data.mix_images import labels_of
from raymi.engine.learner import Learner
from raymi.engine.train_loader import Batch
from raymi.engine.user_attacker import UserAttacker
from raymi.losses.base import AdversarialLoss
from raymi.mi.balance import Objective
from raymi.mi.forms.base import MITerm
from raymi.models.ema import WeightEMA
from raymi.models.folding import FoldedClassifier
from raymi.models.micro_batches import in_pieces, pieces_of
from raymi.models.modes import evaluation_mode, full_precision
from raymi.models.running_statistics import running_statistics_frozen


class Attacker:
    """PGD attack of training on the bare classifier.

    Args:
        model: the bare classifier.
        attack: the threat model.
        objective: maximised by PGD: "ce" or "kl".
        autocast: returns the context in which the classifier runs.
        fold_batchnorm: attack a copy whose BatchNorm is folded into the convolutions.
        micro_batch: samples that are attacked together; None: all.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: AttackConfig,
        objective: str,
        autocast: Callable[[], AbstractContextManager[object]],
        *,
        fold_batchnorm: bool = False,
        micro_batch: int | None = None,
    ) -> None:
        self.model = model
        self.folded = FoldedClassifier(model) if fold_batchnorm else None
        self.attack = attack
        self.objective = objective
        self.autocast = autocast
        self.micro_batch = micro_batch

    def __call__(self, x: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Returns adversarial samples (b, 3, H, W) in [0, 1], within eps of x.

        Args:
            x: (b, 3, H, W) in [0, 1].
            y: (b,) labels, or (b, K) probabilities.
            shard: place of the b samples in the global batch.
        """
        if self.folded is not None:
            self.folded.refresh()
        parts = pieces_of(self.micro_batch, x, y, shard.index)
        return torch.cat([self._attack(shard.key, *part) for part in parts])

    def _attack(self, key: int, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        attack = self.attack
        start = start_of(attack.start, x, attack.eps, attack.norm, key, index)
        with self.autocast(), torch.no_grad():
            return pgd(
                self.model if self.folded is None else self.folded,
                x,
                y,
                eps=attack.eps,
                alpha=attack.step_size,
                steps=attack.steps,
                norm=attack.norm,
                projection=attack.projection,
                objective=self.objective,
                start=start,
            )


class TrainStep:
    """Update of the estimators on detached outputs, then of the classifier (Eq. 9).

    Both share the same two forwards of the classifier; while the classifier learns, the estimators
    are frozen.

    Args:
        attack: of the classifier.
        classifier: learner of the `ClassifierPair`.
        loss: the adversarial loss.
        mi: the MI term; its `target` is that of the loss and the attack.
        objective: weighs their sum.
        update_estimators: learns from the batch and detached outputs, see `EstimatorUpdate`.
        worst_weights: perturbation of the weights at which the loss is taken.
        averages: of the classifier's weights.
    """

    def __init__(
        self,
        attack: Attacker | UserAttacker,
        classifier: Learner,
        loss: AdversarialLoss,
        mi: MITerm,
        objective: Objective,
        update_estimators: Callable[..., Metrics],
        worst_weights: Callable[[Callable[[], None]], AbstractContextManager[object]],
        averages: Sequence[WeightEMA] = (),
    ) -> None:
        self.attack = attack
        self.classifier = classifier
        self.loss = loss
        self.mi = mi
        self.objective = objective
        self.update_estimators = update_estimators
        self.worst_weights = worst_weights
        self.averages = averages

    def __call__(self, batch: Batch) -> Metrics:
        """Updates all parameters once.

        Returns:
            Detached 0-d metrics whose mean over workers is the global batch's.
        """
        x, y, shard = batch
        target, y = self.mi.target(x, y, shard), labels_of(y)
        x_adv = self.attack(x, target, shard)
        with self.worst_weights(partial(self._ascend, x, x_adv, target, shard)):
            logits, logits_adv = self.classifier.task(x, x_adv, shard)
            estimator_metrics = self.update_estimators(
                x, x_adv, logits.detach(), logits_adv.detach(), y, shard
            )
            loss_adv = self.loss(logits, logits_adv, target, shard)
            loss_mi, mi_metrics = self.mi(x, x_adv, logits, logits_adv, y, shard)
            loss, metrics = self.objective(loss_adv, loss_mi, [logits, logits_adv], shard)
            self.classifier.backward(loss)
        self.classifier.update()
        self.loss.observe(logits.detach(), logits_adv.detach(), y, shard)
        for average in self.averages:
            average.update(self.attack.model)
        accuracies = _accuracies(logits, logits_adv, y, shard)
        metrics |= {"loss_adv": loss_adv.detach(), **accuracies}
        return metrics | mi_metrics | estimator_metrics

    def follow(self, progress: float) -> None:
        """Sets schedules to a share of the phase that is over."""
        self.loss.progress = self.mi.progress = self.objective.weight.progress = progress

    def _ascend(self, x: Tensor, x_adv: Tensor, target: Tensor, shard: Shard) -> None:
        """Leaves the gradient of the adversarial loss alone in the parameters (AWP)."""
        # Also during backward: activation checkpointing runs BatchNorm again.
        with running_statistics_frozen(self.attack.model):
            logits, logits_adv = self.classifier.task(x, x_adv, shard, inner=True)
            self.classifier.backward(self.loss(logits, logits_adv, target, shard))


class EstimatorStep:
    """Update of the estimators on a frozen classifier in eval mode (staged schedule).

    Args:
        attack: of the classifier.
        update_estimators: see `EstimatorUpdate`.
    """

    def __init__(self, attack: Attacker | UserAttacker, update_estimators: EstimatorUpdate) -> None:
        self.attack = attack
        self.update_estimators = update_estimators

    def __call__(self, batch: Batch) -> Metrics:
        """Updates the estimators once; argument and result as of `TrainStep`."""
        x, target, shard = batch
        x_adv, y = self.attack(x, target, shard), labels_of(target)
        model = self.attack.model
        with evaluation_mode(model), torch.no_grad(), self.attack.autocast():
            logits, logits_adv = (
                full_precision(in_pieces(model, model, images, shard, self.attack.micro_batch))
                for images in (x, x_adv)
            )
        return self.update_estimators(x, x_adv, logits, logits_adv, y, shard)

    def follow(self, progress: float) -> None:
        """Does nothing, as no weight takes part."""


class EstimatorUpdate:
    """Optimiser step of the estimators on outputs of the classifier.

    Args:
        learner: of the `EstimatorTask`.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def __call__(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor,
        shard: Shard,
    ) -> Metrics:
        """Performs a step and returns its metrics; none for one sample, without negatives.

        Args:
            x: (b, 3, H, W) in [0, 1].
            x_adv: (b, 3, H, W) in [0, 1].
            logits: (b, K) of x, detached.
            logits_adv: (b, K) of x_adv, detached.
            y: (b,).
            shard: place of the b samples in the global batch.
        """
        if shard.num < 2:
            return {}
        loss, metrics = self.learner.task(x, x_adv, logits, logits_adv, y, shard)
        self.learner.step(loss)
        return metrics


def no_update(*batch: object) -> Metrics:
    """Does nothing, in place of an `EstimatorUpdate`."""
    return {}


def _accuracies(logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Shard) -> Metrics:
    """Returns the accuracies of the outputs (b, K) that exist."""
    outputs = {"robust_acc": logits_adv, "clean_acc": logits}
    return {
        name: shard.mean((z.detach().argmax(dim=1) == y).to(torch.float64))
        for name, z in outputs.items()
        if z.shape[1] > 0
    }
