"""What an evaluation consists of: from the words of its command to checked classifiers, images and
attacks."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymi.attacks.catalogue import ATTACKS, Threat, find_attack
from raymi.attacks.suites import ENSEMBLES, SUITES, Ensemble, ensembles_of, suite
from raymi.commands.find_model import WHICH
from raymi.commands.option_types import names, new_file, new_folder, whole, with_json
from raymi.config import Config, ScalingConfig
from raymi.data import DATASETS, ImageSet
from raymi.engine.validation import load_data
from raymi.errors import UserError, did_you_mean
from raymi.formatting import shown
from raymi.overrides import Words, as_typed, examine, flatten, nest, split_words
from raymi.ray_backend.session import check_this_machine, scale_to_fit
from raymi.runs.run_paths import home_folder

SPLITS = ("test", "val")
OWN: dict[str, Iterable[str]] = {
    "model": (),
    "surrogate": (),
    "which": WHICH,
    "suite": SUITES,
    "attacks": (*ENSEMBLES, *ATTACKS),
    "split": SPLITS,
    "samples": (),
    "checks": (),
    "keep": ("true", "false"),
    "results": (),
    "json": (),
}
_TAKEN = (
    "data.", "model.", "attack.norm", "attack.eps", "evaluation.block", "scaling.workers",
    "scaling.use_gpu", "scaling.cpus_per_worker", "scaling.wait_minutes", "scaling.max_failures",
    "tracking.enabled", "tracking.experiment", "seed", "out",
)  # fmt: skip
_TRAINING_ONLY = ("data.flip", "data.crop_padding", "data.generated")
_OF_RUN = ("data.", "attack.norm", "attack.eps")
"""Keys that a run brings along."""
_OF_VALIDATION = ("data.val_fraction", "data.split_seed")
_INSTEAD = {
    "attack.steps": "name the attack, such as attacks=pgd-40",
    "evaluation.steps": "name the attack, such as attacks=pgd-40",
    "evaluation.max_samples": "give samples=N",
    "tracking.registered_name": "name the model, such as model=models:/NAME@ALIAS",
}
"""Remedies for keys of a training that mean something here, too."""

_CHECKS = 200


@dataclass(frozen=True)
class Request:
    """What a command line asks for, as far as it can be judged without a classifier.

    `models`, `surrogates`, names as they were given; `which` of a run's models, None: the chosen
    one; `names` of what is reported; `samples`, None: all; `checks`, samples that are looked at for
    signs of false robustness; `settings`, given keys of `Config`; `results`, folder of all ledgers;
    `command` that continues it.
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
    """Whether an evaluation takes a key of `Config`."""
    return key.startswith(_TAKEN) and not key.startswith(_TRAINING_ONLY)


def requested(words: Sequence[str]) -> Request:
    """The words of a command line, judged.

    Raises: UserError with a line for each thing that is wrong.
    """
    problems: list[str] = []
    parsed = split_words(with_json(words, problems), OWN)
    own = parsed.own
    problems += parsed.problems
    problems += [
        f"{key} decides nothing in an evaluation: "
        + _INSTEAD.get(key, "leave it out (--help lists the keys that count)")
        for key in flatten(parsed.settings)
        if not takes(key)
    ]
    models, surrogates = (names(key, own.get(key), problems) for key in ("model", "surrogate"))
    if not models and "model" not in own:
        problems.append(
            "model=NAME is needed: a run, a registered model (models:/NAME@ALIAS), a file of "
            "weights, or module:function; several with commas between them"
        )
    reported = _reported(own, surrogates, problems)
    files = any(map(os.path.isfile, (*models, *surrogates)))  # may hold models of any name
    for key in ("split", "keep") if files else ("which", "split", "keep"):
        if key in own and own[key] not in OWN[key]:
            problems.append(f"{key}: expected {' | '.join(OWN[key])}, got {shown(own[key])}")
    request = Request(
        models=models,
        surrogates=surrogates,
        which=own.get("which"),
        names=reported,
        split=own.get("split", "test"),
        samples=whole("samples", own.get("samples"), None, problems),
        checks=whole("checks", own.get("checks"), _CHECKS, problems, least=0),
        keep=own.get("keep") == "true",
        results=new_folder("results", own.get("results"), home_folder() / "evaluations", problems),
        json=new_file("json", own.get("json"), problems),
        settings=flatten(parsed.settings),
        command=f"python -m raymi.evaluate {shlex.join(words)}".strip(),
    )
    problems += _wrong_values(parsed)
    if problems:
        raise UserError("\n".join(problems))
    return request


def configured(request: Request, trained: Sequence[Config | None]) -> Config:
    """The configuration of an evaluation: that of the runs which trained its classifiers, as far as
    it concerns images and threat, with the given settings laid over it.

    Args: trained, for each classifier the configuration of its run, where that is known.
    Raises: UserError where runs differ in what is not given, or where nothing names the data.
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
    config, wrong = examine(nest({**base, **request.settings}))
    if problems or wrong:
        raise UserError("\n".join([*problems, *wrong]))
    return config


def _of_run(config: Config, request: Request) -> dict[str, Any]:
    """What a run says of images and threat; where its images were, if they are still those."""
    said = flatten(config.model_dump())
    other = request.settings.get("data.name", config.data.name) != config.data.name
    return {
        key: value
        for key, value in said.items()
        if key.startswith(_OF_RUN) and takes(key) and not (other and key == "data.root")
    }


def scaling_of(request: Request, config: Config) -> ScalingConfig:
    """As many workers as were asked for, or as this machine has GPUs or cores for, or the cluster
    has room for.

    Raises: UserError where it has not enough.
    """
    scaling = config.scaling
    if "scaling.workers" not in request.settings:
        scaling = scale_to_fit(scaling)
    check_this_machine(scaling)
    return scaling


def images_of(
    request: Request, config: Config, warn: Callable[[str], None] = warnings.warn
) -> tuple[ImageSet, str]:
    """Loads the images that are attacked.

    Args:
        request: what the command line asks for.
        config: of the run, with the request's settings.
        warn: takes a warning about images that splits share.

    Returns:
        The images, and the name of the set.

    Raises:
        UserError: settings or files cannot work.
    """
    splits = load_data(config)
    if splits.warning:
        warn(splits.warning)
    whole = splits.test if request.split == "test" else splits.val
    if not len(whole):
        raise UserError(f"{config.data.name} has no {request.split} images: give another split")
    images, name = whole.at_most(request.samples), f"{config.data.name}-{request.split}"
    # Numbers of a selection never stand under the name of all.
    return images, name if len(images) == len(whole) else f"{name}-{len(images)}"


def attacks_of(request: Request, config: Config, num_classes: int) -> tuple[Ensemble, ...]:
    """What is reported of each classifier, beside clean accuracy.

    Raises: UserError with a line for each attack that cannot be used on this threat and data.
    """
    threat = Threat(config.attack.norm, config.attack.eps)
    if threat.eps == 0:
        usual = "8/255" if threat.norm == "linf" else "0.5"
        raise UserError(f"attack.eps is 0, there is nothing to attack with: give eps={usual}, say")
    try:
        return ensembles_of(request.names, threat, num_classes)
    except UserError as error:
        remedy = "choose others (suite=NAME or attacks=A,B), or another threat (attack.norm)"
        raise UserError(f"{error}\n{remedy}") from None


def _reported(
    own: dict[str, str], surrogates: Sequence[str], problems: list[str]
) -> tuple[str, ...]:
    """What is reported: a suite's, or the attacks that are named."""
    if "attacks" in own and "suite" in own:
        problems.append("suite and attacks are both given: keep one")
    reported: tuple[str, ...] = ("pgd-40",) if surrogates else suite("standard")
    if "suite" in own:
        try:
            reported = suite(own["suite"])
        except UserError as error:
            problems.append(str(error))
    if "attacks" in own:
        reported = names("attacks", own["attacks"], problems)
    for name in reported:
        if name in ENSEMBLES and surrogates:
            problems.append(
                f"{name} is an ensemble, and surrogates make samples with single attacks: give "
                "attacks=pgd-40, say"
            )
        elif name not in ENSEMBLES and (problem := _wrong_attack(name)) is not None:
            problems.append(problem)
    return reported


def _wrong_attack(name: str) -> str | None:
    """Why there is no such attack; None where there is."""
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


def _wrong_values(parsed: Words) -> list[str]:
    """What is wrong with given settings, whatever the classifier's run says beside them."""
    taken = {key: value for key, value in flatten(parsed.settings).items() if takes(key)}
    # Without a norm it is the run's; of the two, l2 takes the larger radii.
    return examine(nest({"data.name": "digits", "attack.norm": "l2", **taken}))[1]
