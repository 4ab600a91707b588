"""Options of `python -m raymi.train`, parsed and checked."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from raymi.commands.preflight import input_problems
from raymi.config import Config
from raymi.errors import UserError
from raymi.local_paths import local_path
from raymi.overrides import Words, examine, flatten, leaves, overlay, split_words
from raymi.recipes import RECIPES, on_recipe
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import find_run, resolve_pretrained

COMMAND = "python -m raymi.train"
FIXED_SCALING = ("scaling.precision", "scaling.sync_batchnorm", "scaling.micro_batch")
CHANGEABLE = tuple(
    key
    for key, _ in leaves()
    if (key.startswith(("scaling.", "checkpoint.", "limit.")) and key not in FIXED_SCALING)
    or key in ("data.root", "data.download", "evaluation.block", "mi.score_memory")
    or key in ("tracking.enabled", "tracking.log_every", "tracking.machine_every")
)
"""Keys that may change when a run is continued; all others decide its results."""


@dataclass(frozen=True)
class TrainRequest:
    """A run to begin or to continue.

    Attributes:
        config: resolved configuration.
        recipe: name of the recipe; empty: unknown.
        folder: folder of the run to continue; None: a new run.
        command: command line, or the call from Python.
        dry_run: whether only the configuration is printed.
        to_continue: what continues the run; empty: the command with resume=RUN.
    """

    config: Config
    recipe: str
    folder: RunFolder | None
    command: str
    dry_run: bool = False
    to_continue: str = ""


def requested(words: Sequence[str]) -> TrainRequest:
    """Parses and checks a command line.

    Raises:
        UserError: a line for each problem.
    """
    dry_run = "--dry-run" in words
    parsed = split_words(
        [word for word in words if word != "--dry-run"], {"recipe": RECIPES, "resume": ()}
    )
    folder = None
    if "resume" in parsed.own:
        recipe, config, problems, folder = _continued(parsed)
    else:
        recipe, config, problems = new_run(parsed)
    if not dry_run:
        problems += input_problems(config, new_run=folder is None)
    if problems:
        raise UserError("\n".join(problems))
    command = f"{COMMAND} {shlex.join(words)}".strip()
    return TrainRequest(config, recipe, folder, command, dry_run)


def new_run(parsed: Words) -> tuple[str, Config, list[str]]:
    """Returns recipe and configuration of a new run, and a line for each problem."""
    recipe = parsed.own.get("recipe", "quickstart")
    tree, unknown = on_recipe(recipe, parsed.settings)
    config, wrong = examine(tree)
    config, missing = resolve_pretrained(config)
    return recipe, config, [*parsed.problems, *unknown, *wrong, *missing]


def changed_keys(before: Config, now: Config) -> list[str]:
    """Returns the keys that differ between two configurations and decide results."""
    earlier, later = flatten(before.model_dump()), flatten(now.model_dump())
    return [key for key in earlier if key not in CHANGEABLE and later[key] != earlier[key]]


def _continued(parsed: Words) -> tuple[str, Config, list[str], RunFolder]:
    """Returns recipe, new configuration, problems and folder of a run to continue."""
    problems = list(parsed.problems)
    if "recipe" in parsed.own:
        problems.append("give either recipe or resume: a continued run keeps its recipe")
    out = parsed.settings.pop("out", None)
    try:
        folder = find_run(parsed.own["resume"], local_path(out, "out") if out else None)
        earlier = folder.read_config()
    except UserError as error:
        raise UserError("\n".join([*problems, str(error)])) from None
    config, wrong = examine(overlay(earlier.model_dump(), parsed.settings))
    given = flatten(parsed.settings)
    if fixed := [key for key in changed_keys(earlier, config) if key in given]:
        problems.append(
            f"{', '.join(fixed)} cannot change when a run is continued: start a new run, or change "
            f"only {', '.join(CHANGEABLE)}"
        )
    return str(folder.read_about().get("recipe") or ""), config, [*problems, *wrong], folder
