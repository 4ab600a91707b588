"""`raymi.fit`: trains a classifier from Python, on Ray or in this process."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raymi.commands.cli import EXIT_TIME_LIMIT
from raymi.commands.continuation import changed_keys, earlier_run
from raymi.commands.find_model import find_model_source
from raymi.commands.preflight import input_problems
from raymi.commands.standalone.command import run as run_here
from raymi.commands.standalone.options import StandaloneOptions, StandaloneRequest
from raymi.commands.train.options import TrainRequest, new_run
from raymi.commands.train.run import train as run_on_ray
from raymi.config import Config, ScalingConfig
from raymi.data.arrays import with_test_split
from raymi.data.image_set import ImageSet
from raymi.data.torch_dataset import check_dataset, read_datasets, save_datasets
from raymi.errors import UserError
from raymi.formatting import as_typed
from raymi.given import give, give_module, name_of
from raymi.losses.base import AdversarialLoss
from raymi.losses.own import check_loss, loss_of
from raymi.losses.registry import build_loss, lists_losses
from raymi.models import build_model
from raymi.overrides import split_words
from raymi.ray_backend.train_driver import RunCallback
from raymi.recipes import RECIPES_BY_SIZE
from raymi.runs.record import RunRecord, read_record
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import new_run_folder, runs_folder
from raymi.terminal.console import Terminal
from raymi.terminal.progress import ProgressDisplay

DATASETS_FOLDER = ".datasets"
"""Folder beside the runs with the images of data sets from Python, by digest."""

Model = nn.Module | Callable[..., nn.Module] | str
Loss = AdversarialLoss | type[AdversarialLoss] | str


@dataclass(frozen=True)
class FitResult:
    """Finished run.

    Attributes:
        classifier: chosen model in eval mode on the CPU; raw images (B, 3, H, W) in [0, 1] to
            logits (B, K). It has the highest robust validation accuracy.
        metrics: accuracies of this model as fractions, by the names that MLflow shows:
            `test/clean_acc`, `test/pgd40_acc` (with the number of steps), `val/clean_acc`,
            `val/robust_acc`; and, with probes, `probe/...` in nats.
        path: folder of the run, for `python -m raymi.report runs=...` and the other commands.
    """

    classifier: nn.Module = field(repr=False)
    metrics: Mapping[str, float]
    path: Path


@lists_losses
def fit(
    recipe: str | None = None,
    *,
    model: Model | None = None,
    train: object = None,
    val: object = None,
    test: object = None,
    loss: Loss | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    name: str | None = None,
    callbacks: Sequence[RunCallback] | None = None,
) -> FitResult:
    """Trains a classifier, chooses its best epoch on validation images, and tests it.

    The same as `python -m raymi.train`, or with `workers=0` as `python -m raymi.standalone`: equal
    settings give equal weights. Ctrl-C, or "interrupt" in a notebook, ends the run with a
    checkpoint; the same call with the same `name` continues it, and returns the result of a
    finished run.

    Args:
        recipe: name of a recipe, see `python -m raymi.train --help`, or a recipe file; None: the
            first one for the data, as in the commands. For `train` it is photos, which resizes
            images to 64x64 pixels; smaller ones need a recipe.
        model: network that maps normalised images (B, 3, H, W) to logits (B, K); raymi normalises.
            A function or class called with `num_classes=` and `image_size=`, also of a notebook; a
            module, whose copy is trained from its present weights; or a name: of raymi's networks,
            or `module:function`. None: the recipe's.
        train: map-style torch Dataset of (image, label), in place of the recipe's data; read once.
            Images are tensors or arrays of floats in [0, 1] (rounded to 8 bits) or of uint8, or PIL
            images; labels are 0, 1, 2, .... No random transforms: raymi augments. Images keep their
            size unless `settings` has `data.image_size`, or `recipe` is None.
        val: Dataset of validation images; None: a share `data.val_fraction` of each class of
            `train`.
        test: Dataset of test images; None: 20% of each class of `train`.
        loss: adversarial loss, in place of the recipe's `loss.base`: name
            (`raymi.losses.losses()`, or `module:name` of your own); a subclass of
            `raymi.losses.AdversarialLoss`, also of a notebook; or an object of one.
        settings: values by key, such as `{"optim.epochs": 2, "eps": "8/255"}`; see
            `python -m raymi.train --help`. Keys that take `module:name` (docs/extending.md) also
            take the function, class or object itself, such as `{"mi.form": MyTerm}`.
        workers: number of Ray workers, or a range such as "2..8"; None: the recipe's. 0: trains in
            this process, without Ray and MLflow.
        name: name of the run; None: a new run with a new name.
        callbacks: each has `event(event)`, called for every event of the journal (with `workers=0`
            at the end of epochs). None: progress on a terminal, a line for each epoch elsewhere; an
            empty sequence: no output.

    Returns:
        The finished run.

    Raises:
        UserError: Invalid input, an error of the user's objects, or a run of this name with other
            settings or objects. The message has a line for each problem.
        KeyboardInterrupt: After SIGINT, with a checkpoint.
        TimeoutError: After `limit.hours`, with a checkpoint.
        StorageError: The folder of the run cannot be written.
        RuntimeError: The run failed; its checkpoints remain.
    """
    here = workers == 0
    arguments = {
        "recipe": recipe,
        "name": name,
        "loss.base": None if loss is None else _loss_name(loss),
        "model.name": None if model is None else _model_name(model),
        "scaling.workers": None if here else workers,
        "data.name": None if train is None else "npz",
    }
    recipe, config, problems = _configured(arguments, settings or {}, train)
    if train is None and (val is not None or test is not None):
        problems.append("val and test need train: give your own data sets, or none")
    if problems:
        raise UserError("\n".join(problems))
    if train is not None:
        config = _with_datasets(config, {"train": train, "val": val, "test": test})
    earlier = earlier_run(config)
    # one process needs no CPUs for workers
    checked = config.model_copy(update={"scaling": ScalingConfig()}) if here else config
    if problems := input_problems(checked, new_run=earlier is None):
        raise UserError("\n".join(problems))
    if earlier is not None:
        _refuse_changes(earlier, config)
    call = f"raymi.fit({recipe!r}, name={name!r}, ...)"
    if here:
        folder = earlier or new_run_folder(config, recipe)
        return _fit_here(StandaloneRequest(folder, config, recipe, call), callbacks)
    again = "repeat the call of raymi.fit, with the run's name"
    return _fit_on_ray(TrainRequest(config, recipe, earlier, call, to_continue=again), callbacks)


def _configured(
    arguments: Mapping[str, str | int | None], settings: Mapping[str, Any], train: object
) -> tuple[str, Config, list[str]]:
    """Returns recipe and configuration, and a line for each problem.

    Args:
        arguments: of `fit`, by the key that each sets; None: not given.
        settings: of `fit`.
        train: of `fit`.

    Raises:
        UserError: The first image of `train` cannot be read.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    parsed = split_words(
        [f"{key}={_text_of(value)}" for key, value in (*given.items(), *settings.items())],
        StandaloneOptions,
    )
    tree = dict(parsed.settings)
    if train is not None and "recipe" in given:  # the recipe's size is of its own images
        tree["data"] = {"image_size": None, **tree["data"]}
    recipe, config, problems = new_run(parsed.own.get("recipe"), tree)
    if train is not None and "image_size" not in tree["data"]:
        height, width = check_dataset("train", train).shape[1:]
        side = config.data.image_size or 0
        if max(height, width) < side:
            problems.append(
                f"images of train have {width}x{height} pixels, and {recipe}, the recipe for own "
                f"images, has {side}x{side}: add recipe=NAME; {RECIPES_BY_SIZE}"
            )
    return recipe, config, [*parsed.problems, *problems]


def _text_of(value: object) -> str:
    """Returns the text of a setting; of a class, function or term, a name that workers resolve."""
    return give(value) if callable(value) else as_typed(value)


def _model_name(model: Model) -> str:
    """Returns a name under which workers build a network.

    Raises:
        UserError: The object is no network and builds none.
    """
    if isinstance(model, str):
        return model
    if isinstance(model, nn.Module):
        return give_module(model)
    if callable(model):
        return give(model)
    raise UserError(
        "model must be a torch.nn.Module, a function of num_classes and image_size that returns "
        f"one, or a name, got {type(model).__name__}"
    )


def _loss_name(loss: Loss) -> str:
    """Returns a name under which workers build a loss.

    Raises:
        UserError: The object is no loss.
    """
    if isinstance(loss, str):
        return loss
    loss_of(name_of(loss), loss, {})
    return give(loss)


def _with_datasets(config: Config, sets: Mapping[str, object]) -> Config:
    """Reads data sets and writes them for the workers; returns the configuration that names them.

    Raises:
        UserError: A data set is invalid, or its classes or images do not suit the model.
    """
    given = {part: dataset for part, dataset in sets.items() if dataset is not None}
    read = read_datasets(given, config.data.image_size)
    if "test" not in read:
        read["train"], read["test"] = with_test_split(read["train"])[:2]
    num_classes = len(read["train"].class_names)
    if ":" in config.loss.base:
        loss = build_loss(config.loss.base, config.loss.settings())
        check_loss(config.loss.base, loss, num_classes)
    _check_model(config, read["train"])
    digest = hashlib.sha256("".join(f"{k} {v.digest}" for k, v in read.items()).encode())
    folder = runs_folder(config) / DATASETS_FOLDER / digest.hexdigest()[:16]
    save_datasets(read, folder)
    return config.model_copy(update={"data": config.data.model_copy(update={"root": folder})})


def _check_model(config: Config, train: ImageSet) -> None:
    """Builds the user's own network, before workers start.

    Raises:
        UserError: It cannot be built, or has no logits (B, K) of the training images.
    """
    if ":" not in config.model.name:
        return
    num_classes, side = len(train.class_names), train.images.shape[-1]
    with torch.random.fork_rng():
        build_model(
            config.model.name,
            num_classes=num_classes,
            image_size=side,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        )


def _refuse_changes(folder: RunFolder, config: Config) -> None:
    """Refuses to continue a run with other settings or objects.

    Raises:
        UserError: A setting that decides results, or the content of an object, differs.
    """
    earlier = folder.read_config()
    changed = changed_keys(earlier, config)
    roots = (earlier.data.root, config.data.root)
    if DATASETS_FOLDER in str(roots) and roots[0] != roots[1]:  # its name is a digest
        changed.append("data.root")
    if not changed:
        return
    objects = {"model.name": "model", "data.root": "train, val or test", "loss.base": "loss"}
    what = ", ".join(f"{key} ({objects[key]})" if key in objects else key for key in changed)
    raise UserError(
        f"the run {folder.name} in {folder.path.parent} was begun with another {what}: give the "
        "same ones to continue it, or another name"
    )


def _fit_here(request: StandaloneRequest, callbacks: Sequence[RunCallback] | None) -> FitResult:
    """Trains in this process."""
    shown = [ProgressDisplay(Terminal(), request.config)] if callbacks is None else callbacks

    def on_event(event: dict[str, Any]) -> None:
        for callback in shown:
            callback.event(event)

    if not read_record(request.folder).is_evaluated:
        try:
            code = run_here(request, on_event, is_first=True)
        except FloatingPointError as error:
            raise UserError(str(error)) from None
        _raise_stop(code, request.folder)
    return _result(request.folder)


def _fit_on_ray(request: TrainRequest, callbacks: Sequence[RunCallback] | None) -> FitResult:
    """Trains on Ray."""
    if callbacks is None:
        with ProgressDisplay(Terminal(), request.config) as display:
            result = run_on_ray(request, [display], display.print_line)
    else:
        result = run_on_ray(request, callbacks)
    if result.failure is not None:
        raise result.failure
    _raise_stop(result.exit_code, result.folder)
    return _result(result.folder)


def _raise_stop(code: int, folder: RunFolder) -> None:
    """Raises the exception for a run that ended before its end."""
    again = f"the run {folder.name} has a checkpoint: the same call with name={folder.name!r}"
    again += " continues it"
    if code == EXIT_TIME_LIMIT:
        raise TimeoutError(f"limit.hours has passed; {again}")
    if code == 128 + signal.SIGTERM:
        signal.raise_signal(signal.SIGTERM)  # ends the process, unless it has a handler
    if code > 128:
        raise KeyboardInterrupt(again)
    if code:
        raise RuntimeError(f"a stop was requested by the file {folder.stop_file}; {again}")


def _result(folder: RunFolder) -> FitResult:
    record = read_record(folder)
    source = find_model_source(str(folder.path), Config()).source
    return FitResult(source.load(), _metrics(record), folder.path)


def _metrics(record: RunRecord) -> dict[str, float]:
    """Returns the metrics of the chosen model."""
    chosen = record.evaluations[record.chosen]
    metrics = {
        "test/clean_acc": chosen["clean"],
        f"test/pgd{chosen['attack']['steps']}_acc": chosen["robust"],
    }
    validation = record.validation(record.chosen, chosen["of_epoch"])
    metrics |= {f"val/{key}": validation[key] for key in ("clean_acc", "robust_acc")}
    for probe in record.of_kind("probe"):
        metrics |= {f"probe/{key}": value for key, value in probe["estimates"].items()}
    return metrics
