"""What a comparison consists of: from the words of its command to checked runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymi.commands.compare.run import ArmRun
from raymi.commands.option_types import names, seed_list, whole
from raymi.commands.preflight import input_problems
from raymi.config import ScalingConfig
from raymi.errors import UserError, did_you_mean
from raymi.hardware import available_cores, available_gpus
from raymi.overrides import as_typed, examine, flatten, nest, split_words
from raymi.recipes import BASE_RECIPES, RECIPES, VARIANTS, on_recipe
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import check_new_run, home_folder, resolve_pretrained

ARMS = "at,at-clean-forward,mi-off,random,released,paper,bounded"
SEEDS = "0..2"
_WEIGHTS = {"mi.weight", "mi.balance"}
_REUSED = {"mi.pretrained", "mi.estimators"}
_NOT_SHARED = {
    "seed": "seeds=0..9 says which seeds there are",
    "scaling.workers": "each run has one device; parallel=N runs several at once",
}


@dataclass(frozen=True)
class Comparison:
    """What is compared: its folder, the recipe, the arms (the first is the reference), seeds, runs
    in the order in which they begin, how many go on at once, and the command that continues it."""

    folder: Path
    recipe: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[ArmRun, ...]
    parallel: int
    command: str


def planned(words: Sequence[str]) -> Comparison:
    """The comparison that a command line asks for, with everything checked that can be.

    Raises: UserError with a line for each thing that is wrong.
    """
    own_keys = {"recipe": BASE_RECIPES, "arms": VARIANTS, "seeds": (), "parallel": ()}
    parsed = split_words(words, own_keys)
    problems = list(parsed.problems)
    own, settings = parsed.own, flatten(parsed.settings)
    recipe = own.get("recipe", "quickstart")
    if recipe in RECIPES and recipe not in BASE_RECIPES:
        problems.append(f"recipe {recipe} is a variant already: give the recipe, and it as an arm")
    elif recipe not in BASE_RECIPES:
        problems.append(f"unknown recipe {recipe!r}: {did_you_mean(recipe, BASE_RECIPES)}")
    arms = names("arms", own.get("arms", ARMS), problems)
    problems += [
        f"unknown arm {arm!r}: {did_you_mean(arm, VARIANTS)}" for arm in arms if arm not in VARIANTS
    ]
    seeds = seed_list("seeds", own.get("seeds", SEEDS), problems)
    parallel = whole("parallel", own.get("parallel"), None, problems)
    name, out = settings.pop("name", None), settings.pop("out", None)
    problems += _shared_problems(settings, arms)
    if problems:
        tree, _ = on_recipe(recipe, nest(settings))
        raise UserError("\n".join([*problems, *examine(tree)[1]]))
    place, wrong = examine({"name": name or f"{recipe}-comparison", "out": out})
    if wrong:
        raise UserError("\n".join(wrong))
    assert place.name is not None
    check_new_run(place.model_copy(update={"name": None}))
    folder = (place.out or home_folder() / "runs").absolute() / place.name
    runs = _runs(folder, recipe, arms, seeds, settings)
    most = parallel or len(available_gpus()) or available_cores()
    command = f"python -m raymi.compare {shlex.join(words)}".strip()
    return Comparison(folder, recipe, arms, seeds, runs, min(most, len(runs)), command)


def _set_by(arm: str) -> set[str]:
    return set(flatten(VARIANTS[arm].settings)) if arm in VARIANTS else set()


def _shared_problems(settings: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    """What cannot hold for all arms alike: a line each."""
    problems = [
        f"{key} cannot be set here: {_NOT_SHARED[key]}" for key in settings if key in _NOT_SHARED
    ]
    for key in settings:
        setting = [arm for arm in arms if key in _set_by(arm) - _WEIGHTS]
        if setting:
            problems.append(
                f"{key} cannot be set here: it is what makes the arms {', '.join(setting)}; leave "
                "it out, or choose other arms"
            )
    return problems


def _runs(
    folder: Path,
    recipe: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> tuple[ArmRun, ...]:
    """All runs, seed by seed, so that what is there after a while is paired.

    Raises: UserError.
    """
    runs: list[ArmRun] = []
    problems: list[str] = []
    for seed in seeds:
        for arm in arms:
            shared = settings_of_arm(recipe, arm, settings)
            place = {"name": f"{arm}-seed{seed}", "out": str(folder), "seed": str(seed)}
            keys = {**shared, **place, "scaling.workers": "1"}
            tree, unknown = on_recipe(f"{recipe}-{arm}", nest(keys))
            config, wrong = examine(tree)
            config, missing = resolve_pretrained(config)
            problems += [*unknown, *wrong, *missing]
            words = (f"recipe={recipe}-{arm}", *(f"{k}={as_typed(v)}" for k, v in keys.items()))
            run = ArmRun(arm, seed, RunFolder(folder / place["name"]), config, words)
            problems += _changed(run)
            runs.append(run)
    one_place = runs[0].config.model_copy(update={"scaling": ScalingConfig()})
    problems += input_problems(one_place, new_run=False)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return tuple(runs)


def settings_of_arm(recipe: str, arm: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that an arm takes: weights if it has MI, reused runs if it is staged."""
    off = "mi.weight" in _set_by(arm)
    tree, _ = on_recipe(f"{recipe}-{arm}", {})
    staged = not off and tree.get("mi", {}).get("schedule") == "staged"
    without = (_WEIGHTS if off else set()) | (set() if staged else _REUSED)
    return {key: value for key, value in settings.items() if key not in without}


def _changed(run: ArmRun) -> list[str]:
    """A line if the run is there already, with other settings."""
    if not run.folder.config.is_file():
        return []
    try:
        before = flatten(run.folder.read_config().model_dump())
    except UserError as error:
        return [f"{error}; or choose another name"]
    now = flatten(run.config.model_dump())
    keys = [key for key in now if now[key] != before.get(key)]
    if not keys:
        return []
    changes = [f"{k}={as_typed(before.get(k))}, now {as_typed(now[k])}" for k in keys[:4]]
    changes += [f"and {len(keys) - 4} more"] * (len(keys) > 4)
    return [
        f"the comparison {run.folder.path.parent.name} was begun with other settings "
        f"({'; '.join(changes)}): give the same ones to continue it, or another name"
    ]
