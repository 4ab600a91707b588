"""Builder of a phase: chooses modules, losses and step by the configuration, once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn

from raymi.attacks.settings import start_problem
from raymi.collectives import Collectives
from raymi.config import Config
from raymi.counter_rng import random_key
from raymi.data import Splits
from raymi.engine.awp import AdversarialWeightPerturbation
from raymi.engine.classifier_pair import ClassifierPair, Clean
from raymi.engine.learner import Learner, distributed
from raymi.engine.network_check import NetworkFacts, check_network
from raymi.engine.optimizer import build_optimizer
from raymi.engine.phases import Phase
from raymi.engine.step import Attacker, EstimatorStep, EstimatorUpdate, TrainStep, no_update
from raymi.engine.train_state import TrainState
from raymi.engine.user_attacker import UserAttacker
from raymi.errors import UserError
from raymi.fields import value_at
from raymi.losses.base import AdversarialLoss
from raymi.losses.own import check_loss
from raymi.losses.registry import build_loss
from raymi.mi.balance import BalancedWeight, FixedWeight, Objective
from raymi.mi.estimation import EstimatorTask
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.forms.base import MITerm, TermContext
from raymi.mi.forms.own import check_term
from raymi.mi.forms.registry import build_term
from raymi.mi.settings import MIConfig
from raymi.models import build_model
from raymi.models.batchnorm import convert_batchnorm
from raymi.models.ema import WeightEMA
from raymi.models.user_model import find_function


def build_phase(
    phase: Phase, splits: Splits, group: Collectives, device: torch.device, total_steps: int
) -> TrainState:
    """Builds the state of a phase before its first step.

    Initial weights depend on `config.seed` alone; the classifier's do not depend on the presence of
    estimators.

    Args:
        phase: of the run.
        splits: give number of classes, image size and normalisation.
        group: the workers.
        device: of this worker.
        total_steps: optimiser steps of the phase.

    Raises:
        UserError: the user's own network or loss cannot be trained.
    """
    config = phase.config
    loss = build_loss(config.loss.base, config.loss.settings())
    if ":" in config.loss.base:  # tests check the losses of raymi
        check_loss(config.loss.base, loss, splits.num_classes)
        if config.soft_targets and not loss.takes_soft_targets:
            raise UserError(
                f"loss {config.loss.base!r} takes labels, but {config.soft_targets} trains on soft "
                "targets: let the loss accept y (b, K) with takes_soft_targets = True, or remove "
                f"{config.soft_targets}"
            )
    objective = config.attack.objective or loss.attack_objective
    if (problem := start_problem(objective, config.attack)) is not None:
        raise UserError(problem)
    model, estimators, facts = _modules(phase, splits, group, device, loss)
    autocast = _autocast(config, device)
    mi = build_term(TermContext(config.mi, estimators, model, autocast, config.scaling.micro_batch))
    if ":" in config.mi.form:  # tests check the terms of raymi
        check_term(config.mi.form, mi, splits.num_classes, splits.image_size, loss, device)
    attack = _attacker(config, model, autocast)
    average = None
    if phase.learns_classifier and config.optim.ema > 0:
        average = WeightEMA(model, config.optim.ema)
    averages = [*([] if average is None else [average]), *mi.averages]

    estimator_learner = update = None
    if estimators is not None and phase.learns_estimators:
        adam = torch.optim.Adam(estimators.parameters(), lr=config.mi.estimator_lr)
        task = EstimatorTask(estimators, config.mi, config.scaling.micro_batch)
        estimator_learner = Learner(distributed(task, group, device), adam)
        update = EstimatorUpdate(estimator_learner)

    classifier = perturbation = None
    step: TrainStep | EstimatorStep
    if phase.learns_classifier:
        classifier = _classifier_learner(
            config, model, loss, mi, autocast, group, device, total_steps, bool(facts.unused)
        )
        if config.optim.awp > 0:
            warmup = config.optim.awp_warmup * config.optim.epochs
            perturbation = AdversarialWeightPerturbation(model, config.optim.awp, warmup)
        step = TrainStep(
            attack,
            classifier,
            loss,
            mi,
            build_objective(config.mi),
            update or no_update,
            perturbation or _no_perturbation,
            averages,
        )
    else:
        assert update is not None
        step = EstimatorStep(attack, update)
    if config.scaling.compile:
        _compile([model, attack.folded, *(one.model for one in averages)])
    return TrainState(
        phase,
        group,
        device,
        total_steps,
        model,
        estimators,
        average,
        classifier,
        estimator_learner,
        loss,
        mi,
        perturbation,
        attack,
        step,
        autocast,
        facts,
    )


def build_objective(mi: MIConfig) -> Objective:
    """Builds the weighted sum of Eq. 9, with a fixed or a balanced weight."""
    if mi.balance is None:
        return Objective(FixedWeight(mi.weight or 0.0))
    return Objective(BalancedWeight(mi.balance, mi.alpha_max))


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
            temperature=value_at(mi.temperature, 0.0),
        )

    return MIEstimators(
        natural=build() if mi.natural else None,
        adversarial=build() if mi.adversarial else None,
    )


def _modules(
    phase: Phase, splits: Splits, group: Collectives, device: torch.device, loss: AdversarialLoss
) -> tuple[nn.Module, MIEstimators | None, NetworkFacts]:
    """Returns classifier and estimators on the device, and facts about the user's own network."""
    config, facts = phase.config, NetworkFacts()
    own = ":" in config.model.name
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
    if own:
        find_function(config.model.name)  # its module may draw random numbers on import
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(random_key(config.seed, "classifier"))
        model = build()
        if own:  # tests check the networks of raymi
            facts = check_network(
                config.model.name,
                model,
                build,
                num_classes=splits.num_classes,
                image_size=splits.image_size,
                averaged=config.optim.ema > 0 or config.mi.averages_model,
                frozen_gradients=phase.learns_classifier
                and (loss.needs_clean_gradient or config.mi.needs_clean_gradient),
            )
        torch.manual_seed(random_key(config.seed, "estimators"))
        estimators = build_estimators(config.mi, splits.num_classes, splits.image_size)
    for module in (model, estimators):
        if module is None:
            continue
        if group.world_size > 1 and config.scaling.sync_batchnorm:
            convert_batchnorm(module)
        module.to(device)
        if config.scaling.channels_last:
            module.to(memory_format=torch.channels_last)
    return model, estimators, facts


def _classifier_learner(
    config: Config,
    model: nn.Module,
    loss: AdversarialLoss,
    mi: MITerm,
    autocast: Callable[[], AbstractContextManager[object]],
    group: Collectives,
    device: torch.device,
    total_steps: int,
    some_unused: bool,
) -> Learner:
    """Returns the learner of the pair of forwards that loss and MI term need."""
    optim = config.optim
    optimizer, schedule = build_optimizer(model, optim, total_steps)
    inner = Clean.GRADIENT if loss.needs_clean_gradient else Clean.UNUSED
    clean = Clean.VALUE if mi.needs_clean else Clean.UNUSED
    if loss.needs_clean_gradient or mi.needs_clean_gradient:
        clean = Clean.GRADIENT
    pair = ClassifierPair(
        model, clean, inner, config.loss.batchnorm, autocast, config.scaling.micro_batch
    )
    ddp = distributed(pair, group, device, some_unused=some_unused)
    return Learner(ddp, optimizer, schedule, optim.clip_norm)


def _no_perturbation(ascend: Callable[[], None]) -> AbstractContextManager[object]:
    """Leaves the weights unchanged, in place of an `AdversarialWeightPerturbation`."""
    return nullcontext()


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


def _attacker(
    config: Config, model: nn.Module, autocast: Callable[[], AbstractContextManager[object]]
) -> Attacker | UserAttacker:
    if config.attack.name != "pgd":
        return UserAttacker(model, config.attack, autocast, config.scaling.micro_batch)
    return Attacker(
        model,
        config.attack,
        config.attack_objective,
        autocast,
        fold_batchnorm=config.scaling.fold_batchnorm,
        micro_batch=config.scaling.micro_batch,
    )


def _autocast(config: Config, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    if config.scaling.precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=torch.bfloat16)
