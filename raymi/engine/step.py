"""One training step of the joint schedule: craft, learn the critics, learn the classifier."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raymi.attacks.pgd import pgd
from raymi.attacks.projections import random_start
from raymi.config import AttackConfig
from raymi.engine.critics import Metrics
from raymi.engine.feed import Batch


@dataclass
class Learner:
    """A task (under DDP where there are several workers) with what optimises it."""

    task: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler | None = None

    def descend(self, loss: Tensor) -> None:
        """One optimiser step along the gradient of the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()


class TrainStep:
    """Crafts adversarial samples, updates the critics on detached outputs, then the classifier.

    Both updates share the same two forwards of the classifier; while the classifier learns, the
    critics are frozen.

    Args:
        model: the bare classifier, which PGD attacks.
        classifier: its `ClassifierTask`. estimators: the `EstimatorTask`, None where MI is off.
        attack: the threat model. objective: what PGD maximises, "ce" or "kl".
        autocast: makes the context in which the classifier runs.
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: Learner,
        estimators: Learner | None,
        attack: AttackConfig,
        objective: str,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.model = model
        self.classifier = classifier
        self.estimators = estimators
        self.attack = attack
        self.objective = objective
        self.autocast = autocast

    def __call__(self, batch: Batch, key: int) -> Metrics:
        """Updates all parameters once.

        Args: batch, the worker's share; key, of the attack's random start.
        Returns: detached 0-d metrics whose mean over workers is that of the global batch.
        """
        x, y, index, sizes = batch
        x_adv = self.craft(x, y, index, key)
        metrics: Metrics = {}

        def learn_estimators(logits: Tensor, logits_adv: Tensor) -> None:
            assert self.estimators is not None
            loss, estimates = self.estimators.task(x, x_adv, logits, logits_adv, y, sizes)
            self.estimators.descend(loss)
            metrics.update(estimates)

        learn = learn_estimators if self.estimators is not None else None
        loss, classifier_metrics = self.classifier.task(x, x_adv, y, sizes, learn)
        self.classifier.descend(loss)
        return {**classifier_metrics, **metrics}

    def craft(self, x: Tensor, y: Tensor, index: Tensor, key: int) -> Tensor:
        """Adversarial samples of the bare classifier: (b, 3, H, W) in [0, 1], within eps of x."""
        attack = self.attack
        start = None
        if attack.random_start:
            start = random_start(x, attack.eps, attack.norm, key, index)
        with self.autocast(), torch.no_grad():
            return pgd(
                self.model,
                x,
                y,
                eps=attack.eps,
                alpha=attack.step_size,
                steps=attack.steps,
                norm=attack.norm,
                objective=self.objective,
                start=start,
            )
