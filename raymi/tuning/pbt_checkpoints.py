"""Taking over another run's work, as population-based training does, and where that can be done: a
checkpoint must fit into what goes on from it.

When it is done, and in which order, is in `sweeps.population`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import Any

import torch

from raymi.config import Config
from raymi.engine.phases import phases_of
from raymi.engine.train_state import build_estimators
from raymi.errors import UserError
from raymi.files import not_writable
from raymi.formatting import as_typed
from raymi.overrides import examine, nest, overlay
from raymi.recipes import on_recipe
from raymi.runs.checkpoint import load_checkpoint, replace_checkpoints
from raymi.runs.journal import Journal, JournalReader
from raymi.runs.run_folder import RunFolder
from raymi.tuning.space import Space, Values

_OTHER_MEASURE = "accuracies that are measured in different ways cannot be compared"
_OTHER_CRITIC = "the estimators have learnt something else"
_OTHER_PLACE = "runs would differ in where in their training they are"
_FIXED = {
    "model": "the network would be another one",
    "data": "the images would be other ones",
    "validation": _OTHER_MEASURE,
    "attack.norm": _OTHER_MEASURE,
    "attack.eps": _OTHER_MEASURE,
    "loss.base": "a run would be of several methods",
    "loss.batchnorm": "BatchNorm statistics have followed other batches",
    "mi.form": "a run would be of several methods",
    "mi.gradient": "a run would be of several methods",
    "mi.schedule": _OTHER_PLACE,
    "mi.pretrained": _OTHER_PLACE,
    "mi.estimators": _OTHER_PLACE,
    "mi.pretrain_epochs": _OTHER_PLACE,
    "mi.estimator_epochs": _OTHER_PLACE,
    "mi.bound": _OTHER_CRITIC,
    "mi.score": _OTHER_CRITIC,
    "mi.natural_pattern": _OTHER_CRITIC,
    "optim.epochs": _OTHER_PLACE,
    "optim.batch_size": _OTHER_PLACE,
}
"""Why a key, or a section, cannot change within a run."""

_FREE = {
    *(f"attack.{key}" for key in ("alpha", "steps", "start", "projection", "objective")),
    *("loss.beta", "loss.label_smoothing"),
    *(f"mi.{key}" for key in ("weight", "balance", "alpha_max", "difference", "cosine", "clamp")),
    *(f"mi.{key}" for key in ("objective", "clip_contrast", "samples", "temperature")),
    *(f"mi.{key}" for key in ("natural", "adversarial", "hidden", "base_width", "depth")),
    "mi.estimator_lr",
    *(f"optim.{key}" for key in ("lr", "momentum", "nesterov", "weight_decay", "schedule")),
    *(f"optim.{key}" for key in ("milestones", "warmup", "ema", "awp", "awp_warmup")),
}
"""Keys that count from the next step on, where the checkpoint fits."""

_DRAWS = 4  # each with every value of each parameter, to see whether checkpoints fit


def can_transfer(
    space: Space, recipe: str, settings: Mapping[str, Any], interval: int
) -> str | None:
    """Why a space cannot be searched by population-based training, in words; None where it can.

    Args: recipe, a name of `RECIPES`; settings, keys of `Config` that hold for all members;
        interval, epochs of a generation.
    """
    common, _ = on_recipe(recipe, nest(settings))
    fixed = sorted(space.keys - _FREE)
    if fixed:
        key, section = fixed[0], fixed[0].partition(".")[0]
        why = _FIXED.get(key) or _FIXED.get(section) or "it is fixed when a run begins"
        return (
            f"PBT goes on from checkpoints with other settings, and {key} cannot change within a "
            f"run ({why}): take tune.search=tpe, or a space without it"
        )
    config, _ = examine(common)
    scaling, every = config.scaling, config.validation.every
    if len(phases_of(config)) > 1:
        return (
            f"PBT needs runs of one phase, got {', '.join(p.name for p in phases_of(config))} "
            "(mi.schedule=staged): set mi.schedule=joint or mi.estimators=RUN, or take "
            "tune.search=tpe"
        )
    if scaling.most_workers > 1:
        return (
            f"PBT hands checkpoints from process to process, and needs trials of one worker, got "
            f"scaling.workers={scaling.workers}: set scaling.workers=1, or take tune.search=tpe"
        )
    if interval >= config.optim.epochs:
        return (
            f"PBT needs several generations, got tune.interval={interval} for "
            f"optim.epochs={config.optim.epochs}: set a smaller tune.interval"
        )
    if interval % every:
        return (
            f"PBT compares members after each {interval} epochs, and validation.every={every} does "
            "not measure them there: set validation.every=1"
        )
    misfit = _misfit(space, lambda values: examine(overlay(common, space.settings(values))))
    if misfit is None:
        return None
    return (
        f"PBT hands on checkpoints, and one of {misfit}: take tune.search=tpe, or a space without "
        "it"
    )


def _misfit(space: Space, examined: Callable[[Values], tuple[Config, list[str]]]) -> str | None:
    """What does not fit into what, in words; None where every checkpoint fits everywhere."""
    for values in map(space.random, range(_DRAWS)):
        config, problems = examined(values)
        for name in values if not problems else ():
            for value in space.parameters[name].grid():
                other, unfit = examined({**values, name: value})
                if not unfit and _held(other) != _held(config):
                    before, after = as_typed(values[name]), as_typed(value)
                    return f"{name}={before} does not fit into a run of {name}={after}"
    return None


def _held(config: Config) -> dict[str, Any]:
    """What a checkpoint holds beside the classifier: names of tensors, and their shapes."""
    with torch.device("meta"):
        estimators = build_estimators(config.mi, num_classes=2, image_size=2**config.mi.depth)
    tensors = {} if estimators is None else estimators.state_dict()
    shapes: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return {**shapes, "average": config.optim.ema > 0}


def transfer_checkpoint(leader: RunFolder, follower: RunFolder, epoch: int) -> None:
    """Puts a run's newest checkpoint in the place of another run's, which goes on from it.

    Weights, estimators, moments of the optimisers and the position are the leader's; the settings
    are those that the follower is continued with. Of the best epochs of both the better one is
    kept, so that no model is lost that was better on validation. The follower's journal says so,
    and an exploitation that is in there is not done again. A kill leaves the follower with its old
    checkpoint or with the new one.

    Args: epoch, after which the leader must be, and stay until this is done.
    Raises: UserError where it is elsewhere, or one of both runs is going on; StorageError where the
        follower's folder cannot be written.
    """
    follower.path.mkdir(parents=True, exist_ok=True)
    with leader.lock(), follower.lock():
        events = JournalReader(follower.journal).new_events()
        done = ("exploited", leader.name, epoch)
        if any((e["kind"], e.get("from"), e.get("epoch")) == done for e in events):
            return
        content = _content(leader, epoch)
        own = {}
        with suppress(UserError):  # all damaged: nothing of it is needed
            own = (load_checkpoint(follower.checkpoints) or {}).get("best", {})
        origins = {}
        for name, best in content["best"].items():
            kept = max([best, own.get(name, best)], key=_accuracies)
            origins[name] = {
                "run": (leader if kept is best else follower).name,
                **{key: kept[key] for key in ("epoch", "robust_acc", "clean_acc")},
            }
            content["best"][name] = kept
        step = content["position"]["global_step"]
        about = {"from": leader.name, "best": origins, **content["position"]}
        try:
            replace_checkpoints(follower.checkpoints, step, content)
            with closing(Journal(follower.journal)) as journal:
                journal.write("exploited", **about)
                journal.sync()
        except OSError as error:
            raise not_writable(follower.path, error) from None


def _content(leader: RunFolder, epoch: int) -> dict[str, Any]:
    """The leader's newest checkpoint, which must be that after an epoch."""
    content = load_checkpoint(leader.checkpoints)
    found = "none"
    if content is not None:
        position = content["position"]
        if (position["epoch"], position["step"]) == (epoch, 0):
            return content
        found = f"one after epoch {position['epoch']} and {position['step']} steps"
    raise UserError(
        f"expected a checkpoint after epoch {epoch} in {leader.checkpoints}, got {found}: members "
        "of a population are trained by their sweep alone, begin a new one"
    )


def _accuracies(best: Mapping[str, Any]) -> tuple[float, float]:
    return best["robust_acc"], best["clean_acc"]
