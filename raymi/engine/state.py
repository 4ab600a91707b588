"""Everything that training changes, built from a configuration and kept in checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raymi.collectives import Collectives
from raymi.config import Config
from raymi.counter_rng import random_key
from raymi.data import Splits
from raymi.engine.critics import EstimatorTask
from raymi.engine.gradient_average import average_each
from raymi.engine.metrics import MetricMeans
from raymi.engine.schedules import build_schedule
from raymi.engine.step import Learner, TrainStep
from raymi.engine.tasks import ClassifierTask
from raymi.errors import UserError
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.models import build_model
from raymi.models.batchnorm import convert_batchnorm

FORMAT = 1  # of checkpoints; raised when an older one can no longer be read


@dataclass
class Position:
    """How far training is: `epoch` complete epochs, `step` steps into the next, `global_step` in
    all."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0


@dataclass
class Best:
    """The classifier with the highest robust validation accuracy so far (then clean accuracy)."""

    epoch: int = 0
    robust_acc: float = -1.0
    clean_acc: float = -1.0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def offer(self, epoch: int, robust_acc: float, clean_acc: float, model: nn.Module) -> bool:
        """Takes the model's weights if it is better; says whether it was."""
        better = (robust_acc, clean_acc) > (self.robust_acc, self.clean_acc)
        if better:
            self.epoch, self.robust_acc, self.clean_acc = epoch, robust_acc, clean_acc
            self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        return better


class TrainState:
    """Modules, optimisers, schedules and position of a run.

    Initial weights depend on `config.seed` alone; the classifier's do not depend on whether there
    are critics. With several workers the tasks are under DDP.

    Args: config; splits, for number of classes, image size and normalisation; group; device.
    """

    def __init__(
        self,
        config: Config,
        splits: Splits,
        group: Collectives,
        device: torch.device,
        total_steps: int,
    ) -> None:
        self.config, self.group, self.device = config, group, device
        self.position, self.best, self.epoch_means = Position(), Best(), MetricMeans()
        self.autocast = _autocast(config, device)

        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(random_key(config.seed, "classifier"))
            self.model = build_model(
                config.model.name,
                num_classes=splits.num_classes,
                image_size=splits.image_size,
                mean=splits.mean,
                std=splits.std,
                width=config.model.width,
                depth=config.model.depth,
            )
            torch.manual_seed(random_key(config.seed, "estimators"))
            self.estimators = _build_estimators(config, splits) if config.mi.enabled else None
        if group.world_size > 1:
            if config.scaling.sync_batchnorm:
                convert_batchnorm(self.model)
            if self.estimators is not None:
                convert_batchnorm(self.estimators)
        self.model.to(device)
        if config.scaling.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if config.scaling.compile:
            self.model.compile()

        optim = config.optim
        sgd = torch.optim.SGD(
            self.model.parameters(),
            lr=optim.lr,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
            weight_decay=optim.weight_decay,
        )
        task = ClassifierTask(
            self.model, config.loss, config.mi, self.estimators, group, self.autocast
        )
        schedule = build_schedule(sgd, optim, total_steps)
        self.classifier = Learner(self._distribute(task), sgd, schedule)
        self.critics: Learner | None = None
        if self.estimators is not None:
            self.estimators.to(device)
            if config.scaling.channels_last:
                self.estimators.to(memory_format=torch.channels_last)
            adam = torch.optim.Adam(self.estimators.parameters(), lr=config.mi.estimator_lr)
            critics = EstimatorTask(self.estimators, config.mi, group)
            self.critics = Learner(self._distribute(critics), adam)

        self.step = TrainStep(
            self.model,
            self.classifier,
            self.critics,
            config.attack,
            config.attack_objective,
            self.autocast,
        )

    def _distribute(self, task: nn.Module) -> nn.Module:
        if self.group.world_size == 1:
            return task
        # Two forwards come before one backward, so buffers must not be broadcast in between.
        parameters = signature(DistributedDataParallel.__init__).parameters
        new, old = "forward_sync_buffers", "broadcast_buffers"  # torch 2.12 and later, earlier
        no_sync: dict[str, Any] = {new if new in parameters else old: False}
        ddp = DistributedDataParallel(task, gradient_as_bucket_view=True, **no_sync)
        if self.group.world_size > 2 and self.device.type == "cpu":
            ddp.register_comm_hook(self.group.world_size, average_each)
        return ddp

    def train_mode(self) -> None:
        """Classifier and critics into train mode."""
        self.model.train()
        if self.estimators is not None:
            self.estimators.train()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continued run needs; a collective operation, the same on every
        worker."""
        learners = {"classifier": self.classifier, "critics": self.critics}
        return {
            "format": FORMAT,
            "position": asdict(self.position),
            "model": self.model.state_dict(),
            "estimators": self.estimators.state_dict() if self.estimators is not None else None,
            "optimizers": {k: v.optimizer.state_dict() for k, v in learners.items() if v},
            "schedules": {
                k: v.schedule.state_dict() for k, v in learners.items() if v and v.schedule
            },
            "best": asdict(self.best),
            "epoch_means": self.epoch_means.state(self.group),
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned, with any number of workers.

        Raises: UserError where the checkpoint was written by an incompatible version.
        """
        if content.get("format") != FORMAT:
            raise UserError(
                f"expected a checkpoint of format {FORMAT}, got {content.get('format')}: "
                "continue it with the version of raymi that wrote it"
            )
        self.position = Position(**content["position"])
        self.best = Best(**content["best"])
        self.model.load_state_dict(content["model"])
        if self.estimators is not None:
            self.estimators.load_state_dict(content["estimators"])
        for name, learner in (("classifier", self.classifier), ("critics", self.critics)):
            if learner is not None:
                learner.optimizer.load_state_dict(content["optimizers"][name])
                if learner.schedule is not None:
                    learner.schedule.load_state_dict(content["schedules"][name])
        self.epoch_means.load_state(content["epoch_means"], self.device)


def _build_estimators(config: Config, splits: Splits) -> MIEstimators:
    mi = config.mi

    def critic() -> LocalDIM:
        return LocalDIM(
            splits.num_classes,
            splits.image_size,
            hidden=mi.hidden,
            base_width=mi.base_width,
            depth=mi.depth,
            score=mi.score,
            temperature=mi.temperature,
        )

    return MIEstimators(
        natural=critic() if mi.natural else None,
        adversarial=critic() if mi.adversarial else None,
    )


def _autocast(config: Config, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    if config.scaling.precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=torch.bfloat16)
