"""Options of `raymi.evaluate`, and the settings, images and attacks that they select."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raymi.attacks.catalogue import ATTACKS, Threat, find_attack
from raymi.attacks.suites import ENSEMBLES, SUITES, Ensemble, ensembles_of, suite
from raymi.commands.command_line import split_command_line, value_problems
from raymi.commands.option_types import names, new_file, new_folder, with_json
from raymi.config import Config, ScalingConfig
from raymi.data import DATASETS, ImageSet
from raymi.engine.validation import load_data
from raymi.errors import UserError, did_you_mean
from raymi.fields import Count, Section, Whole
from raymi.formatting import as_typed, shown
from raymi.overrides import examine, flatten, nest, parse_options
from raymi.ray_backend.session import check_this_machine, scale_to_fit
from raymi.runs.events import MODELS
from raymi.runs.run_paths import home_folder

COMMAND = "python -m raymi.evaluate"
SPLITS = ("test", "val")


class EvaluateOptions(Section):
    """Options of `python -m raymi.evaluate`, beside the settings of a run."""

    model: str | None = None
    """Classifiers to evaluate, with commas between them."""
    surrogate: str | None = None
    """Classifiers that make the adversarial images for `model` (black-box transfer)."""
    which: str | None = None
    """Model of a run or of a file with several; none: the chosen one."""
    suite: str | None = None
    """Attacks to report, by the name of a suite; none: standard, of surrogates pgd-40."""
    attacks: str | None = None
    """Attacks and ensembles to report, with commas between them, in place of a suite."""
    split: Literal["test", "val"] = "test"
    """Images to attack."""
    samples: Count | None = None
    """Number of images, evenly selected; none: all."""
    checks: Whole = 200
    """Approximate number of images that are attacked to look for signs of false robustness."""
    keep: Literal["true", "false"] = "false"
    """Save adversarial images, too."""
    results: str | None = None
    """Folder of all outcomes; none: evaluations."""


OPTIONS: dict[str, Iterable[str]] = {
    **dict.fromkeys((*EvaluateOptions.model_fields, "json"), ()),
    "which": MODELS,
    "suite": SUITES,
    "attacks": (*ENSEMBLES, *ATTACKS),
    "split": SPLITS,
    "keep": ("true", "false"),
}
"""Options with their known values."""
_ACCEPTED = (
    "data.", "model.", "attack.norm", "attack.eps", "evaluation.block", "scaling.workers",
    "scaling.use_gpu", "scaling.cpus_per_worker", "scaling.wait_minutes", "scaling.max_failures",
    "tracking.enabled", "tracking.experiment", "seed", "out",
)  # fmt: skip
_TRAINING_ONLY = (
    "data.flip", "data.crop_padding", "data.augment", "data.generated",
    "model.weights",
)  # fmt: skip
_OF_RUN = ("data.", "attack.norm", "attack.eps")
"""Settings that a run supplies."""
_OF_VALIDATION = ("data.val_fraction", "data.split_seed")
_REMEDIES = {
    "attack.steps": "name the attack, such as attacks=pgd-40",
    "evaluation.steps": "name the attack, such as attacks=pgd-40",
    "evaluation.max_samples": "give samples=N",
    "tracking.registered_name": "name the model, such as model=models:/NAME@ALIAS",
}
"""Remedies for settings of training that have a counterpart here."""


@dataclass(frozen=True)
class Request:
    """Parsed command line.

    Args:
        models: names of the classifiers to evaluate, as the user gave them.
        surrogates: names of the classifiers that make samples for them.
        which: one of a run's models; None: the chosen one.
        names: attacks and ensembles to report.
        split: "test" or "val".
        samples: number of images; None: all.
        checks: number of images that are attacked for signs of false robustness.
        keep: keep adversarial images.
        results: folder of all outcome stores.
        json: file for all numbers.
        settings: given settings of `Config`, by key.
        command: the command that continues the evaluation.
    """

    models: tuple[str, ...]
    surrogates: tuple[str, ...]
    which: str | None
    names: tuple[str, ...]
    split: str
    samples: int | None
    checks: int
    keep: bool
    results: Path
    json: Path | None
    settings: dict[str, Any]
    command: str


def takes(key: str) -> bool:
    """Returns whether an evaluation accepts a key of `Config`."""
    return key.startswith(_ACCEPTED) and not key.startswith(_TRAINING_ONLY)


def requested(words: Sequence[str]) -> Request:
    """Parses a command line.

    Raises:
        UserError: with a line for each problem.
    """
    joined: list[str] = []
    texts, settings, problems = split_command_line(
        with_json(words, joined),
        OPTIONS,
        takes,
        lambda key: (
            f"{key} decides nothing in an evaluation: "
            + _REMEDIES.get(key, "leave it out (--help lists the keys that count)")
        ),
    )
    problems[:0] = joined
    options, wrong_options = parse_options(
        EvaluateOptions, {key: text for key, text in texts.items() if key != "json"}
    )
    problems += wrong_options
    models, surrogates = (names(key, texts.get(key), problems) for key in ("model", "surrogate"))
    if not models and "model" not in texts:
        problems.append(
            "model=NAME is needed: a run, a registered model (models:/NAME@ALIAS), a file of "
            "weights, or module:function; several with commas between them"
        )
    reported = _reported(texts, surrogates, problems)
    files = any(map(os.path.isfile, (*models, *surrogates)))  # may hold models of any name
    if "which" in texts and texts["which"] not in MODELS and not files:
        problems.append(f"which: expected {' | '.join(MODELS)}, got {shown(texts['which'])}")
    results = home_folder() / "evaluations"
    request = Request(
        models=models,
        surrogates=surrogates,
        which=texts.get("which"),
        names=reported,
        split=options.split,
        samples=options.samples,
        checks=options.checks,
        keep=options.keep == "true",
        results=new_folder("results", texts.get("results"), results, problems),
        json=new_file("json", texts.get("json"), problems),
        settings=settings,
        command=f"{COMMAND} {shlex.join(words)}".strip(),
    )
    problems += value_problems(settings)
    if problems:
        raise UserError("\n".join(problems))
    return request


def evaluation_config(request: Request, trained: Sequence[Config | None]) -> Config:
    """Returns the configuration of an evaluation.

    The training runs supply images and threat; settings of the request take precedence.

    Args:
        request: parsed command line.
        trained: configuration of each classifier's training run; None: unknown.

    Raises:
        UserError: runs differ in settings that are not given, or the data are unknown.
    """
    known = [_of_run(one, request) for one in trained if one is not None]
    problems = []
    for key in known[0] if known else ():
        if key in request.settings or key == "data.download":
            continue
        if key in _OF_VALIDATION and request.split != "val":
            continue
        values = list(dict.fromkeys(as_typed(one.get(key)) for one in known))
        if len(values) > 1:
            problems.append(
                f"the models' runs differ in {key} ({', '.join(values)}): say which, {key}=..."
            )
    if not known and "data.name" not in request.settings:
        problems.append(
            "data.name=NAME is needed, as no run says what data the model was made for: "
            f"{', '.join(DATASETS)}"
        )
    base = known[0] if known else {}
    threat = {"attack.norm": "linf", "attack.eps": 8 / 255} | base
    norm = request.settings.get("attack.norm", threat["attack.norm"])
    if norm != threat["attack.norm"] and "attack.eps" not in request.settings:
        problems.append(
            f"attack.norm={norm} needs a radius: give attack.eps=..., as "
            f"{as_typed(threat['attack.eps'])} is meant for {threat['attack.norm']}"
        )
    config, wrong_values = examine(nest({**base, **request.settings}))
    if problems or wrong_values:
        raise UserError("\n".join([*problems, *wrong_values]))
    return config


def _of_run(config: Config, request: Request) -> dict[str, Any]:
    """Returns a run's settings of images and threat; its data.root only for the same data set."""
    settings = flatten(config.model_dump())
    other = request.settings.get("data.name", config.data.name) != config.data.name
    return {
        key: value
        for key, value in settings.items()
        if key.startswith(_OF_RUN) and takes(key) and not (other and key == "data.root")
    }


def resolve_scaling(request: Request, config: Config) -> ScalingConfig:
    """Returns the requested workers, or as many as fit on this machine or the cluster.

    Raises:
        UserError: this machine has too few cores or GPUs.
    """
    scaling = config.scaling
    if "scaling.workers" not in request.settings:
        scaling = scale_to_fit(scaling)
    check_this_machine(scaling)
    return scaling


def load_images(
    request: Request, config: Config, warn: Callable[[str], None] = warnings.warn
) -> tuple[ImageSet, str]:
    """Loads the images to attack.

    Args:
        request: parsed command line.
        config: of the evaluation.
        warn: receives a warning about images that splits share.

    Returns:
        The images, and the name of the set.

    Raises:
        UserError: settings or files cannot work.
    """
    splits = load_data(config)
    if splits.warning:
        warn(splits.warning)
    split = splits.test if request.split == "test" else splits.val
    if not len(split):
        raise UserError(f"{config.data.name} has no {request.split} images: give another split")
    images, name = split.at_most(request.samples), f"{config.data.plain_name}-{request.split}"
    # A selection has a name of its own, so that its numbers never stand for all images.
    return images, name if len(images) == len(split) else f"{name}-{len(images)}"


def select_attacks(request: Request, config: Config, num_classes: int) -> tuple[Ensemble, ...]:
    """Returns the ensembles to report, without clean accuracy.

    Raises:
        UserError: with a line for each attack that does not support the threat or the data.
    """
    threat = Threat(config.attack.norm, config.attack.eps)
    if threat.eps == 0:
        usual = "8/255" if threat.norm == "linf" else "0.5"
        raise UserError(f"attack.eps is 0, which allows no perturbation: give eps={usual}, say")
    try:
        return ensembles_of(request.names, threat, num_classes)
    except UserError as error:
        remedy = "choose others (suite=NAME or attacks=A,B), or another threat (attack.norm)"
        raise UserError(f"{error}\n{remedy}") from None


def _reported(
    texts: dict[str, str], surrogates: Sequence[str], problems: list[str]
) -> tuple[str, ...]:
    """Returns the names of a suite, or the given attacks."""
    if "attacks" in texts and "suite" in texts:
        problems.append("suite and attacks are both given: keep one")
    reported: tuple[str, ...] = ("pgd-40",) if surrogates else suite("standard")
    if "suite" in texts:
        try:
            reported = suite(texts["suite"])
        except UserError as error:
            problems.append(str(error))
    if "attacks" in texts:
        reported = names("attacks", texts["attacks"], problems)
    for name in reported:
        if name in ENSEMBLES and surrogates:
            problems.append(
                f"{name} is an ensemble, and surrogates make samples with single attacks: give "
                "attacks=pgd-40, say"
            )
        elif name not in ENSEMBLES and (problem := _attack_problem(name)) is not None:
            problems.append(problem)
    return reported


def _attack_problem(name: str) -> str | None:
    """Returns why a name is not an attack; None: it is one."""
    try:
        find_attack(name)
    except UserError as error:
        plain, at, _ = name.partition("@")
        if at and plain in ENSEMBLES:
            parts = ", ".join(f"{part}@..." for part in ENSEMBLES[plain])
            return f"{name}: an ensemble has no radius of its own: give its attacks, {parts}"
        if name in SUITES:
            return f"{name} is a suite: give suite={name}"
        if str(error).startswith("unknown attack"):
            known = [*ENSEMBLES, *ATTACKS, "pgd-N", "pgd-NxR"]
            return f"unknown attack {shown(name)}: {did_you_mean(plain, known)}"
        return str(error)
    return None
