"""What the command line asks for: a configuration to measure, and how to measure it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raymi.benchmarks.synthetic import image_size
from raymi.commands.option_types import names, new_file, whole, with_json
from raymi.config import Config
from raymi.errors import UserError, did_you_mean
from raymi.formatting import shown
from raymi.hardware import available_cores
from raymi.models import check_model
from raymi.overrides import examine, flatten, overlay, split_words
from raymi.recipes import RECIPES, on_recipe

PARTS = {
    "operations": "multiply-adds of a step outside of crafting, counted",
    "phases": "where the time of a step goes",
    "profile": "the operations that a step spends most time on",
    "ratios": "whole steps against each other: AT, NAMID, the released schedule",
    "crafting": "PGD against torchattacks.PGD",
    "scaling": "one worker against N, plain torch.distributed",
    "ray": "N workers under Ray Train against N under plain torch.distributed",
    "memory": "peak memory of a step",
    "saved": "bytes that the MI term saves for backward, B = 256",
    "largest": "the largest batch that fits",
}
DEFAULTS: dict[str, Any] = {
    "data": {"name": "cifar10"},
    "model": {"name": "resnet18"},
    "mi": {"hidden": 2048},
    "optim": {"batch_size": 64},
    "scaling": {"channels_last": True, "fold_batchnorm": True},
}
"""What is measured where no recipe is named: laid over the defaults of `raymi.config`."""

_MOST_THREADS = 4096
_WHOLE = {"rounds": 5, "runs": 3, "loop_steps": 8, "threads": 0}
_MEANINGLESS = {
    "mi.pretrained": "the estimators of a measurement have fresh weights",
    "mi.estimators": "the estimators of a measurement have fresh weights",
    "data.root": "images are random",
    "data.generated": "images are random",
}


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    rounds: of measurements in turn, in one process. runs: of each kind in turn, where a run has
    processes of its own; loop_steps: measured steps of such a run. threads: of this process.
    workers: N. memory: GiB that a step may take; None: what the device has.
    """

    config: Config
    parts: tuple[str, ...]
    device: torch.device
    rounds: int
    runs: int
    loop_steps: int
    threads: int
    workers: int
    memory: float | None
    json: Path | None


def planned(words: Sequence[str]) -> Plan:
    """What a command line asks for, checked.

    Raises: UserError with a line for each thing that is wrong.
    """
    own_keys: dict[str, Iterable[str]] = {"recipe": RECIPES, "parts": PARTS}
    own_keys |= dict.fromkeys(("memory", "json", *_WHOLE), ())
    problems: list[str] = []
    parsed = split_words(with_json(words, problems), own_keys)
    own = parsed.own
    problems += parsed.problems
    if "recipe" in own:
        tree, unknown = on_recipe(own["recipe"], parsed.settings)
        problems += unknown
    else:
        tree = overlay(DEFAULTS, parsed.settings)
    config, wrong = examine(tree)
    problems += wrong
    problems += [
        f"{key} cannot be set here: {why}"
        for key, why in _MEANINGLESS.items()
        if flatten(parsed.settings).get(key) is not None
    ]
    nums = {key: whole(key, own.get(key), default, problems) for key, default in _WHOLE.items()}
    if nums["threads"] > _MOST_THREADS:
        problems.append(f"threads: expected at most {_MOST_THREADS}, got {nums['threads']}")
    parts = _parts(own.get("parts"), problems)
    memory = _gib(own.get("memory"), problems)
    json = new_file("json", own.get("json"), problems)
    if not wrong:
        problems += _unfit(config)
    if problems:
        raise UserError("\n".join(problems))
    device = _device(config)
    given = "workers" in parsed.settings.get("scaling", {})
    return Plan(
        config=config,
        parts=parts,
        device=device,
        rounds=nums["rounds"],
        runs=nums["runs"],
        loop_steps=nums["loop_steps"],
        threads=nums["threads"] or torch.get_num_threads(),
        workers=config.scaling.most_workers if given else min(places(device), _most(device)),
        memory=memory,
        json=json,
    )


def places(device: torch.device) -> int:
    """How many workers this machine has room for: its GPUs, or its cores."""
    if device.type == "cuda":
        return torch.cuda.device_count()
    return available_cores()


def _most(device: torch.device) -> int:
    return 8 if device.type == "cuda" else 2


def _parts(text: str | None, problems: list[str]) -> tuple[str, ...]:
    if text is None:
        return tuple(PARTS)
    asked = names("parts", text, problems)
    problems += [f"unknown part {n!r}: {did_you_mean(n, PARTS)}" for n in asked if n not in PARTS]
    return tuple(part for part in PARTS if part in asked)


def _gib(text: str | None, problems: list[str]) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        problems.append(f"memory: expected GiB, a number > 0, got {shown(text)}")
    return value


def _unfit(config: Config) -> list[str]:
    """What a valid configuration may have that cannot be measured."""
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


def _device(config: Config) -> torch.device:
    cuda = torch.cuda.is_available() and config.scaling.use_gpu != "false"
    return torch.device("cuda" if cuda else "cpu")
