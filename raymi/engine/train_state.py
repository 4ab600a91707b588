"""State of training: built from a configuration, saved in checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from raymi.collectives import Collectives
from raymi.config import Config
from raymi.counter_rng import random_key
from raymi.data import Splits
from raymi.engine.awp import AdversarialWeightPerturbation
from raymi.engine.classifier_task import ClassifierTask
from raymi.engine.ema import WeightEMA
from raymi.engine.estimator_task import EstimatorTask, Metrics
from raymi.engine.learner import Learner, distributed
from raymi.engine.metrics import MetricMeans
from raymi.engine.network_check import NetworkFacts, check_network
from raymi.engine.optimizer import build_optimizer
from raymi.engine.phases import Phase
from raymi.engine.step import Attacker, EstimatorStep, TrainStep
from raymi.engine.train_loader import Batch
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.settings import MIConfig
from raymi.models import build_model
from raymi.models.batchnorm import convert_batchnorm
from raymi.models.user_model import find_function


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


class TrainState:
    """Modules, optimisers, schedules and position of one phase of a run.

    Initial weights depend on `config.seed` alone; the classifier's do not depend on the presence of
    estimators. With several workers the tasks are under DDP.

    Args:
        phase: of the run.
        splits: give number of classes, image size and normalisation.
        group: the workers.
        device: of this worker.
        total_steps: optimiser steps of the phase.
    """

    def __init__(
        self,
        phase: Phase,
        splits: Splits,
        group: Collectives,
        device: torch.device,
        total_steps: int,
    ) -> None:
        config = phase.config
        self.phase, self.config, self.group, self.device = phase, config, group, device
        self.total_steps = total_steps
        self.position, self.epoch_means = Position(phase.name), MetricMeans()
        self.autocast = _autocast(config, device)
        self.facts = NetworkFacts()
        self._build_modules(splits)
        self.average: WeightEMA | None = None
        if phase.learns_classifier and config.optim.ema > 0:
            self.average = WeightEMA(self.model, config.optim.ema)
        self.best = {name: Best() for name in self.classifiers()}

        self.estimator_learner: Learner | None = None
        if self.estimators is not None and phase.learns_estimators:
            adam = torch.optim.Adam(self.estimators.parameters(), lr=config.mi.estimator_lr)
            task = EstimatorTask(self.estimators, config.mi, group, config.scaling.micro_batch)
            self.estimator_learner = Learner(distributed(task, group, device), adam)
        self.classifier: Learner | None = None
        if phase.learns_classifier:
            self.classifier = self._classifier_learner(total_steps)
        self.attack = Attacker(
            self.model,
            config.attack,
            config.attack_objective,
            self.autocast,
            fold_batchnorm=config.scaling.fold_batchnorm,
            micro_batch=config.scaling.micro_batch,
        )
        if config.scaling.compile:
            average = None if self.average is None else self.average.model
            _compile([self.model, average, self.attack.folded])
        self._step = self._build_step()

    def _build_modules(self, splits: Splits) -> None:
        config, device = self.config, self.device
        build = partial(
            build_model,
            config.model.name,
            num_classes=splits.num_classes,
            image_size=splits.image_size,
            mean=splits.mean,
            std=splits.std,
            width=config.model.width,
            depth=config.model.depth,
            activation=config.model.activation,
        )
        if ":" in config.model.name:
            find_function(config.model.name)  # its module may draw random numbers on import
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(random_key(config.seed, "classifier"))
            self.model = build()
            if ":" in config.model.name:  # tests check the networks of raymi
                self.facts = self._checked(build, splits)
            torch.manual_seed(random_key(config.seed, "estimators"))
            self.estimators = build_estimators(config.mi, splits.num_classes, splits.image_size)
        for module in (self.model, self.estimators):
            if module is None:
                continue
            if self.group.world_size > 1 and config.scaling.sync_batchnorm:
                convert_batchnorm(module)
            module.to(device)
            if config.scaling.channels_last:
                module.to(memory_format=torch.channels_last)

    def _checked(self, build: Callable[[], nn.Module], splits: Splits) -> NetworkFacts:
        """Checks the user's own network before any long work.

        Raises:
            UserError: the network cannot be trained, attacked, saved or loaded.
        """
        config = self.config
        return check_network(
            config.model.name,
            self.model,
            build,
            num_classes=splits.num_classes,
            image_size=splits.image_size,
            averaged=config.optim.ema > 0,
            frozen_gradients=self.phase.learns_classifier
            and (config.loss.base != "at" or config.mi.cosine > 0),
        )

    def _classifier_learner(self, total_steps: int) -> Learner:
        config, optim = self.config, self.config.optim
        task = ClassifierTask(
            self.model,
            config.loss,
            config.mi,
            self.estimators,
            self.group,
            self.autocast,
            config.scaling.micro_batch,
        )
        optimizer, schedule = build_optimizer(self.model, optim, total_steps)
        some_unused = bool(self.facts.unused)
        ddp = distributed(task, self.group, self.device, some_unused=some_unused)
        return Learner(ddp, optimizer, schedule, optim.clip_norm)

    def _build_step(self) -> TrainStep | EstimatorStep:
        if self.classifier is None:
            assert self.estimator_learner is not None
            return EstimatorStep(self.attack, self.estimator_learner)
        gamma = self.config.optim.awp
        perturbation = AdversarialWeightPerturbation(self.model, gamma) if gamma > 0 else None
        return TrainStep(
            self.attack, self.classifier, self.estimator_learner, perturbation, self.average
        )

    def step(self, batch: Batch, key: int) -> Metrics:
        """Performs one training step of the modules that the phase learns.

        Args:
            batch: the worker's shard.
            key: of the attack's random start.

        Returns:
            Detached 0-d metrics whose mean over workers is the global batch's.
        """
        optim = self.config.optim
        warmed_up = self.position.epoch >= optim.awp_warmup * optim.epochs
        self.attack.attack = self.config.attack.at(self._step_of_phase(), self.total_steps)
        return self._step(batch, key, perturb=warmed_up)

    def _step_of_phase(self) -> int:
        """Returns the optimiser steps of the phase so far."""
        per_epoch = self.total_steps // self.config.optim.epochs
        return self.position.epoch * per_epoch + self.position.step

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
        self.epoch_means.load_state(content["epoch_means"], self.device)

    def _learners(self) -> dict[str, Learner]:
        learners = {"classifier": self.classifier, "critics": self.estimator_learner}
        return {name: learner for name, learner in learners.items() if learner is not None}


def build_estimators(mi: MIConfig, num_classes: int, image_size: int) -> MIEstimators | None:
    """Builds the estimators of a configuration; None if it has none.

    Raises:
        UserError: the image is too small for them.
    """
    if not mi.has_estimators:
        return None

    def build() -> LocalDIM:
        return LocalDIM(
            num_classes,
            image_size,
            hidden=mi.hidden,
            base_width=mi.base_width,
            depth=mi.depth,
            score=mi.score,
            temperature=mi.temperature,
        )

    return MIEstimators(
        natural=build() if mi.natural else None,
        adversarial=build() if mi.adversarial else None,
    )


def _compile(models: list[nn.Module | None]) -> None:
    """Compiles each model's forward in place.

    Train or eval mode, gradients, running statistics, autocast and batch size each need a variant:
    more than torch allows by default.
    """
    settings = torch._dynamo.config
    name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    setattr(settings, name, max(getattr(settings, name), 64))
    for model in models:
        if model is not None:
            model.compile()


def _autocast(config: Config, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    if config.scaling.precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=torch.bfloat16)
