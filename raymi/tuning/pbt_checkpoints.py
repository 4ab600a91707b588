"""PBT checkpoint transfer: one run continues from another's checkpoint with its own settings.

`pbt` plans which member continues from which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import Any

import torch

from raymi.config import Config
from raymi.engine.build_phase import build_estimators
from raymi.engine.phases import phases_of
from raymi.errors import UserError
from raymi.files import not_writable
from raymi.formatting import as_typed
from raymi.losses.settings import loss_keys
from raymi.overrides import examine, nest, overlay
from raymi.recipes import on_recipe
from raymi.runs.checkpoint import load_checkpoint, replace_checkpoints
from raymi.runs.journal import Journal, JournalReader
from raymi.runs.run_folder import RunFolder
from raymi.tuning.space import Space, Values

_NOT_COMPARABLE = "accuracies measured in different ways cannot be compared"
_OTHER_ESTIMATORS = "the estimators were trained for another objective"
_OTHER_POSITION = "the runs would be at different positions of their training"
_FIXED = {
    "model": "the network would differ",
    "data": "the images would differ",
    "validation": _NOT_COMPARABLE,
    "attack.norm": _NOT_COMPARABLE,
    "attack.eps": _NOT_COMPARABLE,
    "loss.base": "a run would be of several methods",
    "loss.batchnorm": "BatchNorm statistics come from other batches",
    "optim.name": "the state of one optimiser does not fit another",
    "mi.form": "a run would be of several methods",
    "mi.mix": "a run would be of several methods",
    "mi.schedule": _OTHER_POSITION,
    "mi.pretrained": _OTHER_POSITION,
    "mi.estimators": _OTHER_POSITION,
    "mi.pretrain_epochs": _OTHER_POSITION,
    "mi.estimator_epochs": _OTHER_POSITION,
    "mi.bound": _OTHER_ESTIMATORS,
    "mi.score": _OTHER_ESTIMATORS,
    "mi.negative_classes": _OTHER_ESTIMATORS,
    "mi.natural_pattern": _OTHER_ESTIMATORS,
    "optim.epochs": _OTHER_POSITION,
    "optim.batch_size": _OTHER_POSITION,
}
"""Reasons for which a key, or a section, cannot change within a run."""

_FREE = {
    *(f"attack.{key}" for key in ("alpha", "steps", "start", "projection", "objective")),
    *(f"loss.{key}" for key in loss_keys()),
    *(f"mi.{key}" for key in ("weight", "balance", "alpha_max", "difference", "cosine", "clamp")),
    *(f"mi.{key}" for key in ("objective", "clip_contrast", "samples", "temperature")),
    *(f"mi.{key}" for key in ("natural", "adversarial", "hidden", "base_width", "depth")),
    *(f"mi.{key}" for key in ("estimator_lr", "natural_cap", "teacher_temperature", "teacher_ema")),
    *(f"optim.{key}" for key in ("lr", "momentum", "nesterov", "weight_decay", "schedule")),
    *(f"optim.{key}" for key in ("milestones", "warmup", "ema", "awp", "awp_warmup")),
}
"""Keys that take effect from the next step on, if the checkpoint fits."""

_DRAWS = 4  # whose checkpoints are checked against every value of each parameter


def transfer_problem(
    space: Space, recipe: str, settings: Mapping[str, Any], interval: int
) -> str | None:
    """Returns the reason for which PBT cannot search a space; None: it can.

    Args:
        space: The search space.
        recipe: Name in `RECIPES`.
        settings: Settings of all members, by key of `Config`.
        interval: Epochs of a generation.
    """
    common, _ = on_recipe(recipe, nest(settings))
    fixed = sorted(space.keys - _FREE)
    if fixed:
        key, section = fixed[0], fixed[0].partition(".")[0]
        why = _FIXED.get(key) or _FIXED.get(section) or "it is fixed when a run begins"
        return (
            f"PBT continues checkpoints with other settings, but {key} cannot change within a run "
            f"({why}): set tune.search=tpe, or use a space without it"
        )
    config, _ = examine(common)
    scaling, every = config.scaling, config.validation.every
    if len(phases_of(config)) > 1:
        return (
            f"PBT needs runs of one phase, got {', '.join(p.name for p in phases_of(config))} "
            "(mi.schedule=staged): set mi.schedule=joint, mi.estimators=RUN or tune.search=tpe"
        )
    if scaling.most_workers > 1:
        return (
            "PBT needs trials of one worker, got "
            f"scaling.workers={scaling.workers}: set scaling.workers=1 or tune.search=tpe"
        )
    if interval >= config.optim.epochs:
        return (
            f"PBT needs several generations, got tune.interval={interval} for "
            f"optim.epochs={config.optim.epochs}: set a smaller tune.interval"
        )
    if interval % every:
        return (
            f"PBT compares members every {interval} epochs, but validation.every={every} does not "
            "validate then: set validation.every=1"
        )
    misfit = _misfit(space, lambda values: examine(overlay(common, space.settings(values))))
    if misfit is None:
        return None
    return (
        f"PBT transfers checkpoints, but one of {misfit}: set tune.search=tpe, or use a space "
        "without it"
    )


def _misfit(space: Space, examined: Callable[[Values], tuple[Config, list[str]]]) -> str | None:
    """Returns the first checkpoint that does not fit, as text; None: all fit."""
    for values in map(space.random, range(_DRAWS)):
        config, problems = examined(values)
        for name in values if not problems else ():
            for value in space.parameters[name].grid():
                other, unfit = examined({**values, name: value})
                if not unfit and _checkpoint_shapes(other) != _checkpoint_shapes(config):
                    before, after = as_typed(values[name]), as_typed(value)
                    return f"{name}={before} does not fit into a run of {name}={after}"
    return None


def _checkpoint_shapes(config: Config) -> dict[str, Any]:
    """Returns shapes of a checkpoint's tensors by name, without the classifier's."""
    with torch.device("meta"):
        estimators = build_estimators(config.mi, num_classes=2, image_size=2**config.mi.depth)
    tensors = {} if estimators is None else estimators.state_dict()
    shapes: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return {**shapes, "average": config.optim.ema > 0}


def transfer_checkpoint(source: RunFolder, target: RunFolder, epoch: int) -> None:
    """Replaces a run's checkpoint with another run's newest one.

    Weights, estimators, optimizer moments and position are the source's; the target keeps its own
    settings. Of both best epochs the better one stays, so that no better model is lost. The
    target's journal records the transfer, and a recorded transfer is not repeated. A kill leaves
    the target with its old checkpoint or with the new one.

    Args:
        source: Folder of the run that is copied.
        target: Folder of the run that continues from the copy.
        epoch: Epoch after which the source must be, and must stay during the transfer.

    Raises:
        UserError: The source is at another position, or one of the runs is in use.
        StorageError: The target's folder cannot be written.
    """
    target.path.mkdir(parents=True, exist_ok=True)
    with source.lock(), target.lock():
        events = JournalReader(target.journal).new_events()
        done = ("exploited", source.name, epoch)
        if any((e["kind"], e.get("from"), e.get("epoch")) == done for e in events):
            return
        content = _checkpoint_after(source, epoch)
        own_best = {}
        with suppress(UserError):  # every checkpoint is damaged: none is needed
            own_best = (load_checkpoint(target.checkpoints) or {}).get("best", {})
        origins = {}
        for name, best in content["best"].items():
            better = max([best, own_best.get(name, best)], key=_accuracies)
            origins[name] = {
                "run": (source if better is best else target).name,
                **{key: better[key] for key in ("epoch", "robust_acc", "clean_acc")},
            }
            content["best"][name] = better
        step = content["position"]["global_step"]
        record = {"from": source.name, "best": origins, **content["position"]}
        try:
            replace_checkpoints(target.checkpoints, step, content)
            with closing(Journal(target.journal)) as journal:
                journal.write("exploited", **record)
                journal.sync()
        except OSError as error:
            raise not_writable(target.path, error) from None


def _checkpoint_after(run: RunFolder, epoch: int) -> dict[str, Any]:
    """Returns a run's newest checkpoint.

    Raises:
        UserError: It is not the one after `epoch`.
    """
    content = load_checkpoint(run.checkpoints)
    found = "none"
    if content is not None:
        position = content["position"]
        if (position["epoch"], position["step"]) == (epoch, 0):
            return content
        found = f"one after epoch {position['epoch']} and {position['step']} steps"
    raise UserError(
        f"expected a checkpoint after epoch {epoch} in {run.checkpoints}, got {found}: only the "
        "sweep may train members of a population; start a new sweep"
    )


def _accuracies(best: Mapping[str, Any]) -> tuple[float, float]:
    return best["robust_acc"], best["clean_acc"]
