"""Training steps that are compared: AT, NAMID in both schedules, and its released form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from raymi.benchmarks.synthetic import random_splits
from raymi.collectives import Collectives
from raymi.config import Config
from raymi.engine.build_phase import build_phase
from raymi.engine.phases import phases_of
from raymi.engine.train_loader import Batch, TrainLoader
from raymi.engine.train_state import TrainState
from raymi.overrides import nest, overlay, validate

AT, STAGED, JOINT, RELEASED = ARMS = ("AT", "staged", "joint", "released")

_ARMS: dict[str, dict[str, Any]] = {
    AT: {"mi.weight": 0.0},
    STAGED: {"mi.schedule": "staged"},
    JOINT: {"mi.schedule": "joint"},
    RELEASED: {
        "mi.form": "released",
        "mi.schedule": "staged",
        "loss.base": "at",
        "loss.label_smoothing": 0.0,
        "loss.batchnorm": "released",
        "scaling.micro_batch": None,
        "attack.objective": "ce",
        "optim.ema": 0.0,
        "optim.awp": 0.0,
    },
}
NO_ATTACK = {
    "attack.steps": 0,
    "attack.start": "image",
    "attack.objective": "ce",
    "scaling.fold_batchnorm": False,
}
"""Settings of a step without an attack: x itself is its x_adv."""


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns the configuration with `section.key` settings laid over it."""
    return validate(overlay(config.model_dump(), nest(dict(settings))))


def arm_config(config: Config, arm: str, settings: Mapping[str, Any] | None = None) -> Config:
    """Returns the configuration of an arm, with `settings` laid over it."""
    return with_settings(config, {**_ARMS[arm], **(settings or {})})


@dataclass(frozen=True)
class Trainee:
    """Classifier's phase of an arm: its state and an endless stream of batches."""

    config: Config
    state: TrainState
    batches: Iterator[Batch]


def trainee(config: Config, device: torch.device, group: Collectives | None = None) -> Trainee:
    """Builds an arm that trains on random images, with fresh weights.

    Args:
        config: configuration of the arm (see `arm_config`).
        device: where it trains.
        group: processes that share the batch; None: this process alone.
    """
    group = group or Collectives()
    splits = random_splits(config, 2 * config.optim.batch_size)
    loader = TrainLoader(splits.train.to(device), config, group)
    state = build_phase(phases_of(config)[-1], splits, group, device, total_steps=10**6)
    state.train_mode()
    return Trainee(config, state, _endless(loader))


def step_call(
    config: Config, arm: str, device: torch.device, *, crafting: bool = True
) -> Callable[[], object]:
    """Returns a call that makes one training step of an arm, always on the same batch.

    Args:
        config: configuration that all arms share.
        arm: the arm.
        device: where it trains.
        crafting: False: without the attack, x itself is x_adv.
    """
    made = trainee(arm_config(config, arm, {} if crafting else NO_ATTACK), device)
    batch = next(made.batches)
    return partial(made.state.step, batch)


def _endless(loader: TrainLoader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1
