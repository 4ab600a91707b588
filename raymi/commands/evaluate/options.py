"""Options of `python -m raymi.evaluate`: measures the robust accuracy of any classifier.

All workers share the attacks. Data and threat are by default those of the training run;
data.name=..., attack.norm=..., attack.eps=... change them. Several models are compared on the same
images, in pairs.

Every outcome is saved immediately, in a folder for each model, data, threat, seed, block and
version of the code. After an interruption the same command continues there and returns the same
numbers, on any number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from raymi.attacks.catalogue import ATTACKS, find_attack
from raymi.attacks.suites import CORRUPTIONS, ENSEMBLES, SUITES, suite
from raymi.commands.command_line import Command, CommandLine
from raymi.commands.option_types import Folder, Names, NewFile, NewFolder, in_home
from raymi.config import Config
from raymi.data.settings import DATASETS
from raymi.errors import UserError, did_you_mean
from raymi.fields import NEEDED, Count, Listed, Section, Whole
from raymi.formatting import as_typed, shown
from raymi.overrides import examine, flatten, nest
from raymi.runs.events import MODELS

_ATTACKS = {
    **{name: f"in {' and '.join(attack.norms)}" for name, attack in ATTACKS.items()},
    "pgd-N, pgd-NxR": "PGD of N steps of eps / 4, with R restarts, in linf and l2",
    "module:function": "an attack of your own, see docs/extending.md",
}
_SUITES = {name: ", ".join(("clean", *parts)) for name, parts in SUITES.items()}
_ENSEMBLES = {
    **{name: ", ".join(attacks) for name, attacks in ENSEMBLES.items()},
    CORRUPTIONS: "corrupted test images of corruptions=FOLDER, as in CIFAR-10-C",
}


class EvaluateOptions(Section):
    """Options of `python -m raymi.evaluate`, beside the settings of a run."""

    model: Annotated[Names, NEEDED] = ()
    """Classifiers to evaluate, with commas between them: a run of raymi (name or folder), a
    registered model (models:/NAME@ALIAS), a file of weights (.safetensors, .pt, .pth, .ckpt; give
    model.name=... if it is outside of a run), or module:function, which returns a torch module
    that maps images in [0, 1] to logits."""
    surrogate: Names = ()
    """Classifiers that make the adversarial images for `model` (black-box transfer), with single
    attacks."""
    which: str | None = None
    """Model of a run (best, last, best-averaged or last-averaged) or of a file with several, such
    as ema; none: the chosen one."""
    suite: Annotated[str, Listed("suites", _SUITES)] | None = None
    """Attacks to report, by the name of a suite; none: standard, of surrogates pgd-40."""
    attacks: Annotated[Names, Listed("ensembles", _ENSEMBLES), Listed("attacks", _ATTACKS)] = ()
    """Attacks and ensembles to report, with commas between them, in place of a suite; @2eps after
    a name is another radius."""
    corruptions: Folder | None = None
    """Folder of corrupted test images, as CIFAR-10-C has them, for suite=corruptions."""
    split: Literal["test", "val"] = "test"
    """Images to attack."""
    samples: Count | None = None
    """Number of images, evenly selected; none: all."""
    checks: Whole = 200
    """Approximate number of images that are attacked to look for signs of false robustness; 0:
    only outputs and gradients are checked."""
    keep: bool = False
    """Save adversarial images, too."""
    results: NewFolder = in_home("evaluations")
    """Folder of all outcomes."""
    json_file: Annotated[NewFile | None, Field(alias="json")] = None
    """File for all numbers."""

    @property
    def reported(self) -> tuple[str, ...]:
        """Names of the attacks and ensembles to report."""
        default = ("pgd-40",) if self.surrogate else suite("standard")
        return self.attacks or (default if self.suite is None else suite(self.suite))


_ACCEPTED = (
    "data.", "model.", "attack.norm", "attack.eps", "evaluation.block", "scaling.workers",
    "scaling.use_gpu", "scaling.cpus_per_worker", "scaling.wait_minutes", "scaling.max_failures",
    "tracking.enabled", "tracking.experiment", "seed", "out",
)  # fmt: skip
_TRAINING_ONLY = (
    "data.flip", "data.crop_padding", "data.augment", "data.generated", "model.weights",
)  # fmt: skip
_OF_RUN = ("data.", "attack.norm", "attack.eps")
"""Settings that a run supplies."""
_OF_VALIDATION = ("data.val_fraction", "data.split_seed")
_REMEDIES = {
    "attack.name": "name the attack, such as attacks=pgd-40",
    "attack.steps": "name the attack, such as attacks=pgd-40",
    "evaluation.steps": "name the attack, such as attacks=pgd-40",
    "evaluation.max_samples": "give samples=N",
    "tracking.registered_name": "name the model, such as model=models:/NAME@ALIAS",
}
"""Remedies for settings of training that have a counterpart here."""


Request = CommandLine[EvaluateOptions]


def takes(key: str) -> bool:
    """Returns whether an evaluation accepts a key of `Config`."""
    return key.startswith(_ACCEPTED) and not key.startswith(_TRAINING_ONLY)


def requested(words: Sequence[str]) -> Request:
    """Parses a command line.

    Raises:
        UserError: with a line for each problem.
    """
    line = COMMAND.parse(words)
    options = line.options
    problems = _attack_problems(options)
    if not any(one.startswith("corruptions:") for one in line.problems):
        problems += _corruption_problems(options)
    files = any(map(os.path.isfile, (*options.model, *options.surrogate)))  # models of any name
    if options.which not in (None, *MODELS) and not files:
        problems.append(f"which: expected {' | '.join(MODELS)}, got {shown(options.which)}")
    line.refuse(*problems, *_value_problems(line.settings))
    return line


def _value_problems(settings: Mapping[str, Any]) -> list[str]:
    """Checks given settings by themselves, as a run may supply the others."""
    # The norm may be that of the run; l2 allows the larger radii.
    return examine(nest({"data.name": "digits", "attack.norm": "l2", **settings}))[1]


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
        if key in _OF_VALIDATION and request.options.split != "val":
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


def _attack_problems(options: EvaluateOptions) -> list[str]:
    """Returns a line for each attack that is unknown or cannot make samples of surrogates."""
    problems = []
    if options.suite is not None and options.attacks:
        problems.append("suite and attacks are both given: keep one")
    reported = options.attacks
    try:
        reported = reported or options.reported
        suite(options.suite or "standard")
    except UserError as error:
        problems.append(str(error))
    for name in reported:
        if name in ENSEMBLES and options.surrogate:
            problems.append(
                f"{name} is an ensemble, and surrogates make samples with single attacks: give "
                "attacks=pgd-40, say"
            )
        elif (
            name not in (*ENSEMBLES, CORRUPTIONS) and (problem := _attack_problem(name)) is not None
        ):
            problems.append(problem)
    return problems


def _corruption_problems(options: EvaluateOptions) -> list[str]:
    """Returns a line for each option that does not fit the corrupted images."""
    if CORRUPTIONS not in (*options.attacks, options.suite):
        if options.corruptions is None:
            return []
        return [
            "corruptions=FOLDER is given without its suite: add suite=corruptions, or corruptions "
            "to attacks"
        ]
    problems = []
    if options.corruptions is None:
        problems.append(
            "corruptions=FOLDER is needed: the folder with labels.npy and a file such as fog.npy "
            "for each corruption, as in CIFAR-10-C"
        )
    if options.surrogate:
        problems.append("corruptions are the same images for all models: leave out surrogate")
    if options.split != "test":
        problems.append("corruptions are of test images: leave out split=val")
    return problems


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
            known = [*ENSEMBLES, CORRUPTIONS, *ATTACKS, "pgd-N", "pgd-NxR", "module:function"]
            return f"unknown attack {shown(name)}: {did_you_mean(plain, known)}"
        return str(error)
    return None


COMMAND: Command[EvaluateOptions] = Command(
    "evaluate",
    EvaluateOptions,
    requested,
    "raymi.commands.evaluate.command:evaluate_command",
    takes=takes,
    refusal=lambda key: (
        f"{key} decides nothing in an evaluation: "
        + _REMEDIES.get(key, "leave it out (--help all lists the keys that count)")
    ),
)
