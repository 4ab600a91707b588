"""Options of `python -m raymi.standalone`: trains without Ray and MLflow.

Runs on one device or under torchrun: for profiling, and for clusters with another launcher. The run
is stored in `out`/`name` (runs/NAME); the same command continues it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymi.commands.command_line import Command
from raymi.commands.continuation import changes_refused, earlier_run
from raymi.commands.option_types import Recipe
from raymi.commands.preflight import input_problems
from raymi.commands.train.options import new_run
from raymi.config import Config, ScalingConfig
from raymi.errors import UserError
from raymi.fields import Section
from raymi.recipes import DEFAULT
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import check_writable, runs_folder


class StandaloneOptions(Section):
    """Options of `python -m raymi.standalone`, beside the settings of a run."""

    recipe: Recipe | None = None
    """Name of a recipe, or a .toml file that names one and changes its settings; none: a recipe
    for the data set, or quickstart."""


@dataclass(frozen=True)
class StandaloneRequest:
    """A run to begin or to continue: its folder, configuration, recipe and command line."""

    folder: RunFolder
    config: Config
    recipe: str
    command: str


def requested(words: Sequence[str]) -> StandaloneRequest:
    """Parses and checks a command line.

    Raises:
        UserError: a line for each problem.
    """
    line = COMMAND.parse(words)
    recipe, config, problems = new_run(line.options.recipe, line.tree)
    # the launcher decides on the number of workers, not the configuration
    one_worker = config.model_copy(update={"scaling": ScalingConfig()})
    problems += input_problems(one_worker, new_run=False)
    try:
        check_writable(config)
    except UserError as error:
        problems.append(str(error))
    if config.name is None:
        problems.append("name=NAME is needed: the run is stored in runs/NAME")
    line.refuse(*problems)
    assert config.name is not None
    if (earlier := earlier_run(config)) is not None:
        line.refuse(*changes_refused(earlier, config))
    folder = RunFolder(runs_folder(config) / config.name)
    return StandaloneRequest(folder, config, recipe, line.command)


COMMAND: Command[StandaloneOptions] = Command(
    "standalone",
    StandaloneOptions,
    requested,
    "raymi.commands.standalone.command:standalone",
    default_recipe=DEFAULT,
)
