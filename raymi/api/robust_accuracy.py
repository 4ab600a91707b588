"""`raymi.robust_accuracy`: attacks a classifier from Python."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from raymi.attacks.suites import suite as suite_of
from raymi.attacks.untouched import untouched
from raymi.commands.evaluate.options import EvaluateOptions, Request
from raymi.commands.evaluate.plan import plan_of_models, select_attacks
from raymi.commands.evaluate.run import evaluate
from raymi.commands.find_model import LocatedModel
from raymi.data.image_set import ImageSet
from raymi.data.torch_dataset import read_dataset
from raymi.errors import UserError
from raymi.evaluation.callback import EvaluationCallback
from raymi.evaluation.model_source import function_source
from raymi.formatting import plain_name
from raymi.given import give_module
from raymi.overrides import validate
from raymi.ray_backend.session import check_this_machine
from raymi.signals import Stopped
from raymi.terminal.console import Terminal
from raymi.terminal.evaluation import EvaluationDisplay


@dataclass(frozen=True)
class RobustAccuracy:
    """Accuracy of a classifier under attack.

    Attributes:
        accuracy: lowest accuracy under an ensemble or attack of the suite, as a fraction.
        interval: its 95% Wilson interval.
        n: number of images.
        attack: ensemble or attack with this accuracy.
        accuracies: by ensemble or attack, with `clean`.
        outcomes: (n,) bool by ensemble or attack, with `clean`: the sample is right and not broken.
        suspicions: signs of false robustness, a line each; with any, do not trust the accuracy.
    """

    accuracy: float
    interval: tuple[float, float]
    n: int
    attack: str
    accuracies: Mapping[str, float]
    outcomes: Mapping[str, Tensor] = field(repr=False)
    suspicions: tuple[str, ...] = ()


def robust_accuracy(
    model: nn.Module,
    data: object,
    *,
    eps: float,
    norm: str = "linf",
    suite: str = "standard",
    workers: int = 0,
    checks: int = 200,
    seed: int = 0,
    results: str | Path | None = None,
    callback: EvaluationCallback | None = None,
) -> RobustAccuracy:
    """Attacks a classifier as `python -m raymi.evaluate` does, with the same numbers.

    Args:
        model: images (B, 3, H, W) in [0, 1] to logits (B, K), with its normalisation inside; does
            not change.
        data: map-style torch Dataset of (image, label), with images and labels as in `raymi.fit`;
            not all classes need images. Samples of a `Subset` keep the random starts that they have
            in the whole set.
        eps: radius, in [0, 1] pixel units.
        norm: "linf" or "l2".
        suite: name of a suite, see `python -m raymi.evaluate --help`, or of attacks with commas,
            such as "pgd-40,fast". `standard` is PGD-40 and AutoAttack.
        workers: number of Ray workers; 0: attacks in this process. Numbers do not depend on it.
        checks: approximate number of images that are attacked to look for signs of false
            robustness; 0: only outputs and gradients are checked.
        seed: of all attacks.
        results: folder in which outcomes are saved immediately: after an interruption, the same
            call continues there. None: outcomes are not kept.
        callback: receives the events of the evaluation; None: progress on a terminal, lines
            elsewhere. `raymi.evaluation.callback.EvaluationCallback()`: no output.

    Returns:
        Accuracies and per-sample outcomes.

    Raises:
        UserError: Invalid input; the message has a line for each problem.
        RuntimeError: An attack failed.
        KeyboardInterrupt: After SIGINT.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model must be a torch.nn.Module, got {type(model).__name__}: give the classifier "
            "itself, such as raymi.fit(...).classifier"
        )
    config = validate(
        {
            "attack": {"eps": eps, "norm": norm},
            "scaling": {"workers": max(1, workers)},
            "seed": seed,
        }
    )
    names = tuple(suite.split(",")) if "," in suite else suite_of(suite)
    check_this_machine(config.scaling)
    images = _images(model, data)
    name, num_classes = type(model).__name__, len(images.class_names)
    source = function_source(give_module(model), num_classes, images.images.shape[-1])
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory()) if results is None else results
        options = EvaluateOptions(
            model=(name,), attacks=names, checks=checks, results=Path(folder).absolute()
        )
        request = Request("raymi.robust_accuracy(...)", options, {}, [], [])
        attacks = select_attacks(request, config, images)
        models = {name: LocatedModel(replace(source, name=plain_name(name)))}
        plan = plan_of_models(request, config, config.scaling, images, "data", attacks, models)
        if callback is None:
            callback = stack.enter_context(EvaluationDisplay(Terminal()))
        try:
            (report,), _ = evaluate(plan, callback, here=workers == 0)
        except Stopped as stop:
            signal.raise_signal(stop.signum)  # ends the process, unless it has a handler
            raise KeyboardInterrupt(stop.name) from None
    hardest = min(report.results[1:], key=lambda result: result.accuracy)
    return RobustAccuracy(
        hardest.accuracy,
        hardest.interval,
        report.num,
        hardest.name,
        {result.name: result.accuracy for result in report.results},
        report.robust,
        tuple(finding.text for finding in report.suspicions),
    )


def _images(model: nn.Module, data: object) -> ImageSet:
    """Reads the images to attack; the model's logits give the number of classes.

    Raises:
        UserError: As `read_dataset`, or a label is not below that number.
    """
    images, labels = read_dataset("data", data)
    height, width = images.shape[2:]
    if height != width:
        raise UserError(
            f"images of data must be square, got {width}x{height}: crop or resize them in the "
            "data set"
        )
    highest = int(labels.max())
    num_classes = _num_classes(model, height) or highest + 1
    if highest >= num_classes:
        raise UserError(
            f"labels of data must be 0..{num_classes - 1}, as {type(model).__name__} has "
            f"{num_classes} logits, got {highest}: give the data set that it was made for"
        )
    names = tuple(map(str, range(num_classes)))
    return ImageSet(images, labels, names, _places(data, len(labels)))


def _places(data: object, num: int) -> Tensor:
    """Returns the (num,) positions of samples in the whole data set, on which starts depend."""
    if not isinstance(data, Subset):
        return torch.arange(num)
    whole: Any = data.dataset
    return _places(whole, len(whole))[torch.as_tensor(data.indices)]


def _num_classes(model: nn.Module, image_size: int) -> int | None:
    """Returns the number of logits; None: invalid output, which a later check refuses."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x = torch.full((1, 3, image_size, image_size), 0.5, device=device)
    try:
        with untouched(model, 0), torch.no_grad():
            logits = model(x)
    except Exception:
        return None
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else None
