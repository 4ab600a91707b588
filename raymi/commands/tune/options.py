"""Options of `python -m raymi.tune`: parses the command line into a checked sweep."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import ValidationError

from raymi.commands.initial_weights import resolve_runs
from raymi.commands.option_types import seed_list
from raymi.commands.preflight import input_problems
from raymi.errors import UserError, did_you_mean
from raymi.formatting import shown
from raymi.local_paths import address_problem, local_path
from raymi.overrides import examine, expected, flatten, leaves, nest, split_words
from raymi.recipes import BASE_RECIPES, RECIPES, on_recipe
from raymi.runs.run_paths import home_folder, name_or_path
from raymi.tuning.pbt import MIN_MEMBERS
from raymi.tuning.pbt_checkpoints import transfer_problem
from raymi.tuning.settings import TuneConfig
from raymi.tuning.space import Space, find_space
from raymi.tuning.space_files import known_spaces
from raymi.tuning.sweep_folder import Definition, Sweep, find_sweep

COMMAND = "python -m raymi.tune"
_MOST_COMBINATIONS = 1000
TUNE_FIELDS = {f"tune.{key}": field for key, field in leaves(TuneConfig)}
"""Settings of the search by key."""


def open_sweep(words: Sequence[str]) -> Sweep:
    """Creates the sweep of a command line, or opens the one to resume.

    Raises:
        UserError: The command line is invalid; the message has a line for each problem.
    """
    options = {"space": known_spaces(), "recipe": RECIPES, "resume": (), "seeds": ()}
    parsed = split_words(words, {**options, **dict.fromkeys(TUNE_FIELDS, ())})
    own, settings, problems = parsed.own, flatten(parsed.settings), list(parsed.problems)
    name, out = settings.pop("name", None), settings.pop("out", None)
    problems += examine({"name": name})[1]
    home = home_folder() / "sweeps"
    if out and (problem := address_problem(out)):
        problems.append(f"out: {problem}")
    elif out:
        home = local_path(out, "out")
    if "resume" in own:
        changed = sorted({*own, *settings} - {"resume"})
        if changed:
            problems.append(
                f"{', '.join(changed)} cannot change when a sweep is resumed: start a new sweep"
            )
        if problems:
            raise UserError("\n".join(problems))
        return find_sweep(own["resume"], home)
    settings.setdefault("scaling.workers", "1")
    recipe, space = own.get("recipe", "quickstart"), _space(own, problems)
    tune = _tune_config(own, {} if space is None else space.tune, problems)
    seeds = _seeds(own, settings, problems)
    problems += _trial_problems(space, recipe, settings)
    if space is not None and tune.search == "grid" and "tune.trials" not in own:
        tune = _whole_grid(space, tune, problems)
    if tune.search == "pbt" and space is not None and not problems:
        problems += _pbt_problems(space, recipe, settings, seeds, tune)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    assert space is not None
    definition = Definition(
        id=uuid.uuid4().hex,
        command=f"{COMMAND} {shlex.join(words)}",
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
    return f"{COMMAND} resume={name_or_path(sweep.path, home_folder() / 'sweeps')}"


def _pbt_problems(
    space: Space,
    recipe: str,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    tune: TuneConfig,
) -> list[str]:
    """Returns the reasons for which PBT cannot search, a line each."""
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


def _space(own: Mapping[str, str], problems: list[str]) -> Space | None:
    if "space" not in own:
        problems.append(f"space=NAME is missing: {', '.join(known_spaces())}, or a .toml file")
        return None
    try:
        return find_space(own["space"])
    except UserError as error:
        problems.append(str(error))
        return None


def _tune_config(
    own: Mapping[str, str], defaults: Mapping[str, Any], problems: list[str]
) -> TuneConfig:
    given: dict[str, Any] = {}
    for key, text in own.items():
        if key in TUNE_FIELDS:
            none = text.lower() == "none" and TUNE_FIELDS[key].default is None
            given[key.removeprefix("tune.")] = None if none else text
    try:
        return TuneConfig.model_validate({**defaults, **given})
    except ValidationError as error:
        for one in error.errors():
            key = f"tune.{one['loc'][0]}"
            wanted = f"expected {expected(TUNE_FIELDS[key])}, got {shown(one['input'])}"
            if one["type"] == "value_error":
                wanted = one["msg"].removeprefix("Value error, ")
            problems.append(f"{key}: {wanted}")
        return TuneConfig()


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
    own: Mapping[str, str], settings: dict[str, Any], problems: list[str]
) -> tuple[int, ...]:
    """Moves `seed` out of the settings into the seeds."""
    one = settings.pop("seed", None)
    if one is not None and "seeds" in own:
        problems.append("give either seed or seeds: seeds=0..9 repeats every trial")
    return seed_list("seeds", str(own.get("seeds", 0 if one is None else one)), problems)


def _trial_problems(space: Space | None, recipe: str, settings: Mapping[str, Any]) -> list[str]:
    """Returns the problems of the trials' recipe and settings, a line each."""
    if recipe not in RECIPES:
        return [f"unknown recipe {shown(recipe)}: {did_you_mean(recipe, BASE_RECIPES)}"]
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
