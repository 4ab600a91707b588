"""Options of `python -m raymi.train`: trains, evaluates and tracks a classifier.

The same command with the same name=NAME continues the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymi.commands.command_line import Command, CommandLine
from raymi.commands.continuation import (
    CHANGEABLE,
    changed_keys,
    changes_refused,
    earlier_run,
)
from raymi.commands.initial_weights import resolve_runs
from raymi.commands.option_types import Recipe
from raymi.commands.preflight import input_problems
from raymi.config import Config
from raymi.errors import UserError
from raymi.fields import Section
from raymi.local_paths import local_path
from raymi.overrides import Tree, examine, nest, overlay
from raymi.recipes import DEFAULT, named_recipe, on_recipe
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import find_run


class TrainOptions(Section):
    """Options of `python -m raymi.train`, beside the settings of a run."""

    recipe: Recipe | None = None
    """Name of a recipe, or a .toml file that names one and changes its settings; none: a recipe
    for the data set, or quickstart."""
    resume: str | None = None
    """Name or folder of a run to continue from its last checkpoint."""
    dry_run: bool = False
    """Print the resolved configuration, and train nothing."""


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
    line = COMMAND.parse(words)
    options, folder = line.options, None
    if options.resume is not None:
        recipe, config, problems, folder = _continued(line, options.resume)
    else:
        recipe, config, problems = new_run(options.recipe, line.tree)
        if (folder := earlier_run(config)) is not None and not [*line.problems, *problems]:
            problems += changes_refused(folder, config)
    if not options.dry_run:
        problems += input_problems(config, new_run=folder is None)
    line.refuse(*problems)
    return TrainRequest(config, recipe, folder, line.command, options.dry_run)


def new_run(recipe: str | None, given: Tree) -> tuple[str, Config, list[str]]:
    """Returns recipe and configuration of a new run, and a line for each problem."""
    name, settings, unknown = named_recipe(recipe, given)
    config, wrong = examine(settings if unknown else on_recipe(name, settings)[0])
    config, missing = resolve_runs(config)
    return name, config, [*unknown, *wrong, *missing]


def _continued(
    line: CommandLine[TrainOptions], run: str
) -> tuple[str, Config, list[str], RunFolder]:
    """Returns recipe, new configuration, problems and folder of a run to continue."""
    problems, settings = [], dict(line.settings)
    if line.options.recipe is not None:
        problems.append("give either recipe or resume: a continued run keeps its recipe")
    out = settings.pop("out", None)
    try:
        folder = find_run(run, local_path(out, "out") if out else None)
        earlier = folder.read_config()
    except UserError as error:
        line.refuse(*problems, str(error))
        raise
    config, wrong = examine(overlay(earlier.model_dump(), nest(settings)))
    if fixed := [key for key in changed_keys(earlier, config) if key in settings]:
        problems.append(
            f"{', '.join(fixed)} cannot change when a run is continued: start a new run, or change "
            f"only {', '.join(CHANGEABLE)}"
        )
    return str(folder.read_about().get("recipe") or ""), config, [*problems, *wrong], folder


COMMAND: Command[TrainOptions] = Command(
    "train",
    TrainOptions,
    requested,
    "raymi.commands.train.command:train_command",
    default_recipe=DEFAULT,
)
