"""Training runs that take a second: 180 real digits of 8x8 pixels and a thin network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from raymi.collectives import Collectives, ProcessGroup
from raymi.config import Config
from raymi.data import Splits, load_splits
from raymi.engine.build_phase import build_phase
from raymi.engine.context import LocalContext, StopReason
from raymi.engine.loop import TrainResult, train
from raymi.engine.metrics import MetricMeans
from raymi.engine.phases import phases_of
from raymi.engine.train_loader import TrainLoader
from raymi.engine.train_state import TrainState
from raymi.runs.run_folder import RunFolder

TINY = {
    "data.name": "digits", "data.limit": 200, "data.flip": False, "data.crop_padding": 1,
    "model.name": "small-cnn", "model.width": 0.5, "model.depth": 4,
    "attack.eps": 0.2, "attack.steps": 2,
    "mi.hidden": 16, "mi.base_width": 4, "mi.depth": 1,
    "optim.epochs": 2, "optim.batch_size": 44, "optim.lr": 0.05, "optim.schedule": "onecycle",
    "validation.steps": 2, "probe.steps": 0, "evaluation.steps": 2, "evaluation.max_samples": 40,
    "tracking.enabled": False, "tracking.log_every": 1,
}  # fmt: skip
"""180 training images in steps of 44, 44, 44, 44 and 4."""


def tiny_config(settings: dict[str, Any] | None = None) -> Config:
    """The tiny run with `section.key` settings laid over it."""
    tree: dict[str, Any] = {}
    for key, value in {**TINY, **(settings or {})}.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return Config.model_validate(tree)


def tiny_splits(config: Config) -> Splits:
    """The data of a configuration."""
    data = config.data
    return load_splits(
        data.name, image_size=data.image_size, val_fraction=data.val_fraction, limit=data.limit
    )


def own_group() -> Collectives:
    """All ranks where torch.distributed has joined some, or this process alone."""
    return ProcessGroup() if torch.distributed.is_initialized() else Collectives()


def tiny_state(
    config: Config, group: Collectives | None = None, phase: str = "classifier"
) -> tuple[TrainState, TrainLoader]:
    """The state of a phase of a run and its training batches, without the loop."""
    group, splits = group or own_group(), tiny_splits(config)
    loader = TrainLoader(splits.train, config, group)
    (chosen,) = (known for known in phases_of(config) if known.name == phase)
    steps = chosen.config.optim.epochs * loader.steps_per_epoch
    state = build_phase(chosen, splits, group, torch.device("cpu"), steps)
    state.train_mode()
    return state, loader


def steps_in_float64(
    rank: int, world_size: int, settings: dict[str, Any], num_steps: int, phase: str = "classifier"
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Means over workers of the metrics of the first steps, and the weights after them."""
    torch.set_default_dtype(torch.float64)
    try:
        state, loader = tiny_state(tiny_config(settings), phase=phase)
        history: list[dict[str, float]] = []
        for epoch in range(num_steps):
            for batch in loader.epoch(epoch):
                if len(history) < num_steps:
                    means = MetricMeans()
                    means.add(state.step(batch._replace(x=batch.x.double())), 1)
                    history.append(means.means(state.group))
        weights = {f"model.{k}": v for k, v in state.model.state_dict().items()}
        if state.estimators is not None:
            weights |= {f"estimators.{k}": v for k, v in state.estimators.state_dict().items()}
        if state.average is not None:
            weights |= {f"average.{k}": v for k, v in state.average.model.state_dict().items()}
        return history, weights
    finally:
        torch.set_default_dtype(torch.float32)


class StoppingContext(LocalContext):
    """Asks for a stop, by the run's stop file, once `stop_at` steps were made."""

    def __init__(self, stop_file: Path, stop_at: int | None = None) -> None:
        super().__init__("cpu", stop_file, poll_seconds=0.0)
        self.stop_file, self.stop_at, self.asked, self.reports = stop_file, stop_at, 0, []

    def stop_requested(self) -> StopReason | None:
        if self.asked == self.stop_at and self.group.rank == 0:
            self.stop_file.touch()
        self.asked += 1
        return super().stop_requested()

    def report(self, metrics: Any) -> None:
        self.reports.append(dict(metrics))


def tiny_run(
    rank: int, world_size: int, folder: Path, settings: dict[str, Any], stops: list[int]
) -> TrainResult:
    """A run from beginning to end, over sessions that stop after `stops` steps."""
    config, outcome = tiny_config(settings), None
    run = RunFolder(folder)
    for stop_at in [*stops, None]:
        if rank == 0:
            run.stop_file.unlink(missing_ok=True)
        if world_size > 1:
            torch.distributed.barrier()
        outcome = train(config, StoppingContext(run.stop_file, stop_at), run)
        assert outcome.finished == (stop_at is None)
    return outcome


def same(a: Any, b: Any) -> bool:
    """Equality of nested values, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def dropout_net(num_classes: int, image_size: int) -> nn.Module:
    """A user's own network that draws from torch's global random state."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(8 * (image_size // 2) ** 2, num_classes),
    )  # fmt: skip


def vector_net(num_classes: int, image_size: int) -> nn.Module:
    """A user's own network with BatchNorm over samples alone."""
    return nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(3 * image_size**2), nn.Linear(3 * image_size**2, num_classes)
    )


def tied_net(num_classes: int, image_size: int) -> nn.Module:
    """A user's own network in which two layers share their weights."""
    size = 3 * image_size**2
    first, second = nn.Linear(size, size), nn.Linear(size, size)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.Linear(size, num_classes))


def norm_free_net(num_classes: int, image_size: int) -> nn.Module:
    """A user's own network without BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(8 * (image_size // 2) ** 2, num_classes),
    )  # fmt: skip


class _Counting(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([super(_Counting, self).forward(one.flatten()[None]) for one in x])


class _Branching(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((2 * x if x.mean().item() > 0 else x).flatten(1))


def counting_net(num_classes: int, image_size: int) -> nn.Module:
    """A user's own network that goes over its images one by one."""
    return _Counting(3 * image_size**2, num_classes)


def branching_net(num_classes: int, image_size: int) -> nn.Module:
    """A user's own network that does this or that, as the pixels are."""
    return _Branching(3 * image_size**2, num_classes)
