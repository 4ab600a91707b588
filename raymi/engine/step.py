"""Training step: attacks the batch, then updates the modules of the phase."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from raymi import counter_rng
from raymi.attacks.pgd import pgd
from raymi.attacks.projections import start_of
from raymi.attacks.settings import AttackConfig
from raymi.counter_rng import random_key
from raymi.engine.awp import AdversarialWeightPerturbation
from raymi.engine.ema import WeightEMA
from raymi.engine.estimator_task import Metrics
from raymi.engine.learner import Learner
from raymi.engine.micro_batches import in_pieces, pieces_of
from raymi.engine.train_loader import Batch
from raymi.models.folding import FoldedClassifier
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

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, key: int) -> Tensor:
        """Returns adversarial samples (b, 3, H, W) in [0, 1], within eps of x."""
        if self.folded is not None:
            self.folded.refresh()
        parts = pieces_of(self.micro_batch, x, y, index)
        return torch.cat([self._attack(key, *part) for part in parts])

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
    """Update of the estimators on detached outputs, then of the classifier.

    Both share the same two forwards of the classifier; while the classifier learns, the estimators
    are frozen.

    Args:
        attack: of the classifier.
        classifier: learner of the `ClassifierTask`.
        estimators: learner of the `EstimatorTask`; None: MI is off, or they stay frozen.
        perturbation: of the weights at which the loss is taken; None: no perturbation.
        average: of the classifier's weights; None: no averaging.
    """

    def __init__(
        self,
        attack: Attacker,
        classifier: Learner,
        estimators: Learner | None = None,
        perturbation: AdversarialWeightPerturbation | None = None,
        average: WeightEMA | None = None,
    ) -> None:
        self.attack = attack
        self.classifier = classifier
        self.estimators = estimators
        self.perturbation = perturbation
        self.average = average

    def __call__(self, batch: Batch, key: int, *, perturb: bool = True) -> Metrics:
        """Updates all parameters once.

        Args:
            batch: the worker's shard.
            key: of the attack's random start.
            perturb: whether to perturb the weights, if the step has a perturbation.

        Returns:
            Detached 0-d metrics whose mean over workers is the global batch's.
        """
        x, y, index, shard_sizes = batch
        x_adv = self.attack(x, y, index, key)
        metrics: Metrics = {}

        def learn_estimators(logits: Tensor, logits_adv: Tensor) -> None:
            assert self.estimators is not None
            loss, estimates = self.estimators.task(x, x_adv, logits, logits_adv, y, shard_sizes)
            self.estimators.step(loss)
            metrics.update(estimates)

        def noise(logits: Tensor) -> Tensor:
            stream = random_key("random gradient", key)
            return counter_rng.normal(stream, index, (logits.shape[1],)).to(logits.dtype)

        def ascend() -> None:
            # Also during backward: activation checkpointing runs BatchNorm again.
            with running_statistics_frozen(self.attack.model):
                loss, _ = self.classifier.task(x, x_adv, y, shard_sizes, adversarial_only=True)
                self.classifier.backward(loss)

        learn = learn_estimators if self.estimators is not None else None
        perturbed: AbstractContextManager[object] = nullcontext()
        if self.perturbation is not None and perturb:
            perturbed = self.perturbation.at_worst_weights(ascend)
        with perturbed:
            loss, classifier_metrics = self.classifier.task(
                x, x_adv, y, shard_sizes, learn, noise=noise
            )
            self.classifier.backward(loss)
        self.classifier.update()
        if self.average is not None:
            self.average.update(self.attack.model)
        return {**classifier_metrics, **metrics}


class EstimatorStep:
    """Update of the estimators on a frozen classifier in eval mode (staged schedule).

    Args:
        attack: of the classifier.
        estimators: learner of the `EstimatorTask`.
    """

    def __init__(self, attack: Attacker, estimators: Learner) -> None:
        self.attack = attack
        self.estimators = estimators

    def __call__(self, batch: Batch, key: int, *, perturb: bool = False) -> Metrics:
        """Updates the estimators once; arguments and result as of `TrainStep`."""
        x, y, index, shard_sizes = batch
        x_adv = self.attack(x, y, index, key)
        if sum(shard_sizes) < 2:  # one sample has no negatives
            return {}
        model = self.attack.model
        with evaluation_mode(model), torch.no_grad(), self.attack.autocast():
            logits, logits_adv = (
                full_precision(
                    in_pieces(model, model, images, shard_sizes, self.attack.micro_batch)
                )
                for images in (x, x_adv)
            )
        loss, metrics = self.estimators.task(x, x_adv, logits, logits_adv, y, shard_sizes)
        self.estimators.step(loss)
        return metrics
