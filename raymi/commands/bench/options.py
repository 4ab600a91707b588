"""Options of `python -m raymi.bench`, parsed and checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from raymi.benchmarks.plan import PARTS, Plan, free_slots
from raymi.benchmarks.synthetic import image_size
from raymi.commands.option_types import names, new_file, with_json
from raymi.config import Config
from raymi.errors import UserError, did_you_mean
from raymi.fields import Count, Section, at_most
from raymi.models import check_model
from raymi.overrides import examine, flatten, overlay, parse_options, split_words
from raymi.recipes import RECIPES, on_recipe

DEFAULTS: dict[str, Any] = {
    "data": {"name": "cifar10"},
    "model": {"name": "resnet18"},
    "mi": {"hidden": 2048},
    "optim": {"batch_size": 64},
    "scaling": {"channels_last": True, "fold_batchnorm": True},
}
"""Settings of a benchmark without a recipe, laid over the defaults of `raymi.config`."""

_REFUSED = {
    "mi.pretrained": "the estimators of a measurement have fresh weights",
    "mi.estimators": "the estimators of a measurement have fresh weights",
    "data.root": "images are random",
    "data.generated": "images are random",
}


class BenchOptions(Section):
    """Options of `python -m raymi.bench`, beside the settings of a run."""

    recipe: str | None = None
    """Recipe to measure; none: ResNet-18 on 32x32 images, batch 64, PGD-10, estimators of 2048
    units, with scaling.channels_last and scaling.fold_batchnorm."""
    parts: str | None = None
    """Parts to measure, comma-separated; none: all."""
    rounds: Count = 5
    """Rounds of measurements in turn, in one process."""
    runs: Count = 3
    """Runs in turn of each kind that needs fresh processes."""
    loop_steps: Count = 8
    """Measured steps of such a run."""
    threads: Annotated[int, Field(ge=1), at_most(4096)] | None = None
    """Threads of this process; none: torch's default."""


def planned(words: Sequence[str]) -> Plan:
    """Parses and checks a command line.

    Raises:
        UserError: a line for each problem.
    """
    problems: list[str] = []
    known: dict[str, Iterable[str]] = dict.fromkeys((*BenchOptions.model_fields, "json"), ())
    parsed = split_words(with_json(words, problems), {**known, "recipe": RECIPES, "parts": PARTS})
    problems += parsed.problems
    json = new_file("json", parsed.own.pop("json", None), problems)
    options, wrong_options = parse_options(BenchOptions, parsed.own)
    if options.recipe is None:
        tree = overlay(DEFAULTS, parsed.settings)
    else:
        tree, unknown = on_recipe(options.recipe, parsed.settings)
        problems += unknown
    config, wrong = examine(tree)
    problems += [*wrong, *wrong_options]
    problems += [
        f"{key} cannot be set here: {why}"
        for key, why in _REFUSED.items()
        if flatten(parsed.settings).get(key) is not None
    ]
    parts = names("parts", options.parts, problems)
    problems += [f"unknown part {n!r}: {did_you_mean(n, PARTS)}" for n in parts if n not in PARTS]
    if not wrong:
        problems += _unsuitable(config)
    if problems:
        raise UserError("\n".join(problems))
    cuda = torch.cuda.is_available() and config.scaling.use_gpu != "false"
    device = torch.device("cuda" if cuda else "cpu")
    given = "workers" in parsed.settings.get("scaling", {})
    return Plan(
        config=config,
        parts=tuple(part for part in PARTS if part in (parts or PARTS)),
        device=device,
        rounds=options.rounds,
        runs=options.runs,
        loop_steps=options.loop_steps,
        threads=options.threads or torch.get_num_threads(),
        workers=config.scaling.most_workers if given else min(free_slots(device), 8 if cuda else 2),
        json=json,
    )


def _unsuitable(config: Config) -> list[str]:
    """Returns why a valid configuration cannot be measured, a line for each reason."""
    problems: list[str] = []
    if not (config.mi.has_estimators and config.mi.natural and config.mi.adversarial):
        problems.append(
            "expected a configuration with both kinds of MI, got one without: leave out what "
            "switches them off; AT is measured in any case"
        )
    try:
        model = config.model
        check_model(model.name, image_size=image_size(config), width=model.width, depth=model.depth)
    except UserError as error:
        problems.append(str(error))
    most = image_size(config).bit_length() - 1
    if config.mi.depth > most:
        problems.append(f"mi.depth must be at most {most} here, got {config.mi.depth}")
    if config.scaling.use_gpu == "true" and not torch.cuda.is_available():
        problems.append("use_gpu=true needs a GPU, torch sees none: leave it out")
    return problems
