"""State of training, saved in checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from raymi.collectives import Collectives, Metrics
from raymi.config import Config
from raymi.engine.awp import AdversarialWeightPerturbation
from raymi.engine.learner import Learner
from raymi.engine.metrics import MetricMeans
from raymi.engine.network_check import NetworkFacts
from raymi.engine.phases import Phase
from raymi.engine.step import Attacker, EstimatorStep, TrainStep
from raymi.engine.train_loader import Batch
from raymi.engine.user_attacker import UserAttacker
from raymi.fields import value_at
from raymi.losses.base import AdversarialLoss
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.forms.base import MITerm
from raymi.models.ema import WeightEMA


@dataclass
class Position:
    """Position of a run.

    Attributes:
        phase: its name.
        epoch: complete epochs of the phase.
        step: steps of the next epoch.
        global_step: steps of all phases.
    """

    phase: str = "classifier"
    epoch: int = 0
    step: int = 0
    global_step: int = 0


@dataclass
class Best:
    """Classifier with the highest robust, then clean, validation accuracy so far."""

    epoch: int = 0
    robust_acc: float = -1.0
    clean_acc: float = -1.0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def offer(self, epoch: int, robust_acc: float, clean_acc: float, model: nn.Module) -> bool:
        """Keeps a copy of the model's weights if it is better; returns whether it is."""
        better = (robust_acc, clean_acc) > (self.robust_acc, self.clean_acc)
        if better:
            self.epoch, self.robust_acc, self.clean_acc = epoch, robust_acc, clean_acc
            self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        return better


@dataclass
class TrainState:
    """Modules, optimisers, schedules and position of one phase of a run.

    `build_phase` builds it. With several workers the tasks of the learners are under DDP.

    Attributes:
        phase: of the run.
        group: the workers.
        device: of this worker.
        total_steps: optimiser steps of the phase.
        model: the bare classifier.
        estimators: of MI; None: the phase has none.
        average: of the classifier's weights; None: no averaging.
        classifier: learner of the classifier; None: it is frozen.
        estimator_learner: learner of the estimators; None: frozen, or absent.
        loss, mi: terms of the classifier's loss, with state of their own.
        perturbation: of the classifier's weights; None: no perturbation.
        attack: of the classifier.
        training_step: updates the modules that the phase learns.
        autocast: returns the context in which the classifier runs.
        facts: about the user's own network.
        position, epoch_means, best: progress of the phase.
    """

    phase: Phase
    group: Collectives
    device: torch.device
    total_steps: int
    model: nn.Module
    estimators: MIEstimators | None
    average: WeightEMA | None
    classifier: Learner | None
    estimator_learner: Learner | None
    loss: AdversarialLoss
    mi: MITerm
    perturbation: AdversarialWeightPerturbation | None
    attack: Attacker | UserAttacker
    training_step: TrainStep | EstimatorStep
    autocast: Callable[[], AbstractContextManager[object]]
    facts: NetworkFacts
    position: Position = field(init=False)
    epoch_means: MetricMeans = field(init=False, default_factory=MetricMeans)
    best: dict[str, Best] = field(init=False)

    def __post_init__(self) -> None:
        self.position = Position(self.phase.name)
        self.best = {name: Best() for name in self.classifiers()}

    @property
    def config(self) -> Config:
        """Configuration of the phase."""
        return self.phase.config

    def step(self, batch: Batch) -> Metrics:
        """Performs one training step of the modules that the phase learns.

        Args:
            batch: the worker's shard.

        Returns:
            Detached 0-d metrics whose mean over workers is the global batch's.
        """
        self.follow_schedules()
        self.attack.attack = self.config.attack.at(self._step_of_phase, self.total_steps)
        if self.perturbation is not None:
            self.perturbation.epoch = self.position.epoch
        return self.training_step(batch)

    def follow_schedules(self) -> None:
        """Sets weights and temperatures to the position in the phase."""
        self.training_step.follow(self.progress)
        for estimator in () if self.estimators is None else self.estimators.children():
            assert isinstance(estimator, LocalDIM)
            estimator.temperature = value_at(self.config.mi.temperature, self.progress)

    @property
    def progress(self) -> float:
        """Share of the phase's steps that is over."""
        return self._step_of_phase / self.total_steps

    @property
    def _step_of_phase(self) -> int:
        steps_per_epoch = self.total_steps // self.config.optim.epochs
        return self.position.epoch * steps_per_epoch + self.position.step

    def end_epoch(self) -> None:
        """Ends an epoch for the terms of the loss; a collective operation."""
        for term in self._terms().values():
            term.end_epoch(self.group)

    def classifiers(self) -> dict[str, nn.Module]:
        """Returns the models to evaluate by suffix: "" as trained, "-averaged" if averaged.

        Empty if the phase trains no classifier.
        """
        if not self.phase.learns_classifier:
            return {}
        averaged = {} if self.average is None else {"-averaged": self.average.model}
        return {"": self.model, **averaged}

    def modules_not_finite(self) -> list[str]:
        """Returns the names of the modules with a number that is not finite."""
        modules: dict[str, nn.Module | None] = {
            "the classifier": self.model,
            "the estimators": self.estimators,
        }
        if self.average is not None:
            modules["the averaged classifier"] = self.average.model
        return [
            name
            for name, module in modules.items()
            if module is not None
            and not torch.stack([t.isfinite().all() for t in module.state_dict().values()]).all()
        ]

    def train_mode(self) -> None:
        """Sets the modules to train mode."""
        self.model.train()
        if self.estimators is not None:
            self.estimators.train()

    @property
    def lr(self) -> float:
        """Learning rate of the classifier, or of the estimators where these learn alone."""
        learner = self.classifier or self.estimator_learner
        assert learner is not None
        return learner.optimizer.param_groups[0]["lr"]

    def state_dict(self) -> dict[str, Any]:
        """Returns the content of a checkpoint; a collective operation, the same on every worker."""
        return {
            "position": asdict(self.position),
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "estimators": None if self.estimators is None else self.estimators.state_dict(),
            "learners": {name: learner.state_dict() for name, learner in self._learners().items()},
            "terms": {name: term.state_dict() for name, term in self._terms().items()},
            "best": {name: asdict(best) for name, best in self.best.items()},
            "epoch_means": self.epoch_means.state(self.group),
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Restores the content of `state_dict`, with any number of workers."""
        self.position = Position(**content["position"])
        self.best = {name: Best(**best) for name, best in content["best"].items()}
        self.model.load_state_dict(content["model"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        if self.estimators is not None:
            self.estimators.load_state_dict(content["estimators"])
        for name, learner in self._learners().items():
            learner.load_state_dict(content["learners"][name])
        for name, term in self._terms().items():
            term.load_state_dict(content["terms"][name])
        self.epoch_means.load_state(content["epoch_means"], self.device)

    def _terms(self) -> dict[str, AdversarialLoss | MITerm]:
        return {"loss": self.loss, "mi": self.mi} if self.phase.learns_classifier else {}

    def _learners(self) -> dict[str, Learner]:
        learners = {"classifier": self.classifier, "critics": self.estimator_learner}
        return {name: learner for name, learner in learners.items() if learner is not None}
