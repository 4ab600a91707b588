"""Options of `python -m raymi.tune`: searches settings for the highest robust accuracy.

Trials are compared on validation images. Keys are settings of all trials; those that the space
varies cannot be set. A trial is an ordinary run that never reads the test set, in one process or,
with scaling.workers=N, in several.

PGD-40, then AutoAttack, evaluate the best trials on validation images. The winner alone is
evaluated on the test set, logged and registered in MLflow.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

from raymi.commands.command_line import Command
from raymi.commands.initial_weights import resolve_runs
from raymi.commands.option_types import Recipe, Seeds
from raymi.commands.preflight import input_problems
from raymi.errors import UserError
from raymi.fields import Listed, Section
from raymi.local_paths import address_problem, local_path
from raymi.overrides import examine, flatten, nest
from raymi.recipes import DEFAULT, named_recipe, on_recipe
from raymi.runs.run_paths import home_folder, name_or_path
from raymi.tuning.pbt import MIN_MEMBERS
from raymi.tuning.settings import TuneConfig
from raymi.tuning.space import Space, find_space
from raymi.tuning.space_files import known_spaces
from raymi.tuning.sweep_folder import Definition, Sweep, find_sweep

_MOST_COMBINATIONS = 1000


def _descriptions() -> dict[str, str]:
    return {name: find_space(name).description for name in known_spaces()}


class TuneOptions(Section):
    """Options of `python -m raymi.tune`, beside the settings of its trials."""

    space: Annotated[str | None, Listed("spaces", _descriptions)] = None
    """Name of a search space, or the path of your own .toml file."""
    recipe: Recipe | None = None
    """Name of a recipe, or a .toml file that names one and changes its settings; none: a recipe
    for the data set, or quickstart."""
    seeds: Seeds | None = None
    """Seeds of each trial, such as 0..9; trials are compared in pairs. none: the one seed."""
    resume: str | None = None
    """Name or folder of an interrupted sweep to continue, its trials from their last
    checkpoints."""
    tune: TuneConfig = TuneConfig()


def open_sweep(words: Sequence[str]) -> Sweep:
    """Creates the sweep of a command line, or opens the one to resume.

    Raises:
        UserError: The command line is invalid; the message has a line for each problem.
    """
    line = COMMAND.parse(words)
    options, settings, problems = line.options, dict(line.settings), []
    name, out = settings.pop("name", None), settings.pop("out", None)
    problems += examine({"name": name})[1]
    home = home_folder() / "sweeps"
    if out and (problem := address_problem(out)):
        problems.append(f"out: {problem}")
    elif out:
        home = local_path(out, "out")
    if options.resume is not None:
        changed = sorted({*options.model_fields_set, *settings} - {"resume"})
        if changed:
            problems.append(
                f"{', '.join(changed)} cannot change when a sweep is resumed: start a new sweep"
            )
        line.refuse(*problems)
        return find_sweep(options.resume, home)
    recipe, tree, unknown = named_recipe(options.recipe, nest(settings))
    settings = {"scaling.workers": "1", **flatten(tree)}
    space = _space(options.space, problems)
    tune = options.tune
    if space is not None:
        given = tune.model_dump(include=tune.model_fields_set)
        tune = TuneConfig.model_validate({**space.tune, **given})
    seeds = _seeds(options.seeds, settings, problems)
    if space is not None and not unknown:
        space = space.fitted(recipe, nest(settings))
    problems += unknown or _trial_problems(space, recipe, settings)
    if (
        space is not None
        and tune.search == "grid"
        and "trials" not in options.tune.model_fields_set
    ):
        tune = _whole_grid(space, tune, problems)
    if tune.search == "pbt" and space is not None and not [*line.problems, *problems]:
        problems += _pbt_problems(space, recipe, settings, seeds, tune)
    line.refuse(*problems)
    assert space is not None
    definition = Definition(
        id=uuid.uuid4().hex,
        command=line.command,
        space=space,
        recipe=recipe,
        settings=settings,
        seeds=seeds,
        tune=tune,
    )
    name = name or f"{space.name}-{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Sweep.begin(home / name, definition)


def resume_command(sweep: Sweep) -> str:
    """Returns the command that resumes a sweep."""
    return f"{COMMAND.program} resume={name_or_path(sweep.path, home_folder() / 'sweeps')}"


def _pbt_problems(
    space: Space,
    recipe: str,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    tune: TuneConfig,
) -> list[str]:
    """Returns the reasons for which PBT cannot search, a line each."""
    from raymi.tuning.pbt_checkpoints import transfer_problem  # imports torch

    problems = []
    if tune.trials < MIN_MEMBERS:
        problems.append(f"tune.search=pbt needs tune.trials >= {MIN_MEMBERS}, got {tune.trials}")
    if len(seeds) > 1:
        problems.append("tune.search=pbt needs one seed: leave out seeds, or set tune.search=tpe")
    if tune.objective != "robust":
        problems.append(f"tune.search=pbt needs tune.objective=robust, got {tune.objective}")
    if (why := transfer_problem(space, recipe, settings, tune.interval)) is not None:
        problems.append(why)
    return problems


def _space(name: str | None, problems: list[str]) -> Space | None:
    if name is None:
        problems.append(f"space=NAME is missing: {', '.join(known_spaces())}, or a .toml file")
        return None
    try:
        return find_space(name)
    except UserError as error:
        problems.append(str(error))
        return None


def _whole_grid(space: Space, tune: TuneConfig, problems: list[str]) -> TuneConfig:
    """Sets the number of trials to the number of combinations, unless the space sets it."""
    if "trials" in space.tune:
        return tune
    num = sum(1 for _ in islice(space.grid(), _MOST_COMBINATIONS + 1))
    if num > _MOST_COMBINATIONS:
        problems.append(
            f"the grid of {space.name} has more than {_MOST_COMBINATIONS} combinations: give "
            "tune.trials=N for its first N, or set tune.search=random"
        )
    return tune.model_copy(update={"trials": num})


def _seeds(
    given: tuple[int, ...] | None, settings: dict[str, Any], problems: list[str]
) -> tuple[int, ...]:
    """Moves `seed` out of the settings into the seeds."""
    one = settings.pop("seed", None)
    if one is not None and given is not None:
        problems.append("give either seed or seeds: seeds=0..9 repeats every trial")
    config, wrong = examine({} if one is None else {"seed": one})
    problems += wrong
    return given or (config.seed,)


def _trial_problems(space: Space | None, recipe: str, settings: Mapping[str, Any]) -> list[str]:
    """Returns the problems of the trials' recipe and settings, a line each."""
    problems = []
    if space is not None:
        varied = sorted(space.keys & set(settings))
        problems += [f"{key} cannot be set: the space {space.name} varies it" for key in varied]
        if (why := space.incompatible(recipe, nest(settings))) is not None:
            problems.append(f"the space {space.name} does not fit: {why}")
    tree, _ = on_recipe(recipe, nest(settings))
    config, wrong = examine(tree)
    config, missing = resolve_runs(config)
    if config.scaling.elastic:
        problems.append(
            f"scaling.workers must be a number, got {config.scaling.workers}: trials share the "
            "cluster, each with as many workers as the others"
        )
    return [*problems, *wrong, *missing, *input_problems(config, new_run=False)]


COMMAND: Command[TuneOptions] = Command(
    "tune",
    TuneOptions,
    open_sweep,
    "raymi.commands.tune.command:tune_command",
    default_recipe=DEFAULT,
)
