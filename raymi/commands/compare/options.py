"""Options of `python -m raymi.compare`: compares variants of one recipe over seeds, in pairs.

Runs need no Ray. Runs with the same seed share data order, augmentation, attack
starts and initial weights. The compared number is the difference to the first arm, seed by seed.
Each arm and seed is an ordinary run in `out`/`name`/ARM-seedK (runs/RECIPE-comparison), trained by
`python -m raymi.standalone` on one device. Given again, the command continues: it keeps finished
runs, and resumes others from their last checkpoint. Losses that are not finite are a result,
"diverged"; delete the folder of such a run to try it again.

All keys are settings of a run and apply to all arms. An arm without MI ignores mi.weight and
mi.balance, and only staged arms use mi.pretrained and mi.estimators.

The closing table is also in `comparison.md`, and all numbers are in `comparison.json`. MLflow gets
a run with the means and paired differences, and a child for each arm and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymi.commands.command_line import Command
from raymi.commands.compare.run import ArmRun
from raymi.commands.continuation import difference
from raymi.commands.initial_weights import resolve_runs
from raymi.commands.option_types import Arms, BaseRecipe, Seeds
from raymi.commands.preflight import input_problems
from raymi.config import ScalingConfig
from raymi.errors import UserError
from raymi.fields import Count, Section
from raymi.formatting import as_typed
from raymi.hardware import available_cores, available_gpus
from raymi.mi.settings import foreign_keys
from raymi.overrides import examine, flatten, nest
from raymi.recipes import BASE_RECIPES, DEFAULT, RECIPES, VARIANTS, named_recipe, on_recipe
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import check_new_run, home_folder

ARMS = ("at", "at-clean-forward", "mi-off", "random", "released", "paper", "bounded")
_WEIGHTS = {"mi.weight", "mi.balance"}
_REUSED = {"mi.pretrained", "mi.estimators"}
_NOT_SHARED = {
    "seed": "set seeds=0..9",
    "scaling.workers": "each run has one device; set parallel=N for simultaneous runs",
}


class CompareOptions(Section):
    """Options of `python -m raymi.compare`, beside the settings of its runs."""

    recipe: BaseRecipe | None = None
    """Recipe whose variants are compared, or a .toml file that names one and changes its settings;
    none: a recipe for the data set, or quickstart."""
    arms: Arms = ARMS
    """Variants of the recipe, comma-separated; the first one is the reference."""
    seeds: Seeds = (0, 1, 2)
    """Seeds of each arm, such as 0..9 or 0,1,2."""
    parallel: Count | None = None
    """Number of simultaneous runs; none: one for each GPU, or for each CPU core."""


@dataclass(frozen=True)
class Comparison:
    """Plan of a comparison.

    Attributes:
        folder: of the comparison.
        recipe: name.
        arms: variants of the recipe; the first one is the reference.
        seeds: of each arm.
        runs: in the order of their start.
        parallel: number of simultaneous runs.
        command: that continues the comparison.
    """

    folder: Path
    recipe: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[ArmRun, ...]
    parallel: int
    command: str


def plan_comparison(words: Sequence[str]) -> Comparison:
    """Parses a command line and checks all of its runs.

    Raises:
        UserError: words are wrong; one line for each problem.
    """
    line = COMMAND.parse(words)
    options = line.options
    recipe, tree, unknown = named_recipe(options.recipe, line.tree)
    problems, settings = [*line.problems, *unknown], flatten(tree)
    if recipe in RECIPES and recipe not in BASE_RECIPES:
        problems.append(
            f"recipe {recipe} is a variant already: give its base recipe, and the variant in arms"
        )
    arms, seeds = options.arms, options.seeds
    name, out = settings.pop("name", None), settings.pop("out", None)
    problems += _shared_problems(settings, arms)
    if problems:
        tree = nest(settings) if unknown else on_recipe(recipe, nest(settings))[0]
        line.refuse(*problems, *examine(tree)[1])
    location, wrong = examine({"name": name or f"{recipe}-comparison", "out": out})
    if wrong:
        raise UserError("\n".join(wrong))
    assert location.name is not None
    check_new_run(location.model_copy(update={"name": None}))
    folder = (location.out or home_folder() / "runs").absolute() / location.name
    runs = _runs(folder, recipe, arms, seeds, settings)
    most = options.parallel or len(available_gpus()) or available_cores()
    return Comparison(folder, recipe, arms, seeds, runs, min(most, len(runs)), line.command)


def _set_by(arm: str) -> set[str]:
    return set(flatten(VARIANTS[arm].settings)) if arm in VARIANTS else set()


def _shared_problems(settings: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    """Returns a line for each setting that cannot apply to all arms."""
    problems = [
        f"{key} cannot be set here: {_NOT_SHARED[key]}" for key in settings if key in _NOT_SHARED
    ]
    for key in settings:
        setting = [arm for arm in arms if key in _set_by(arm) - _WEIGHTS]
        if setting:
            problems.append(
                f"{key} cannot be set here: it defines the arms {', '.join(setting)}; leave it "
                "out, or choose other arms"
            )
    return problems


def _runs(
    folder: Path,
    recipe: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> tuple[ArmRun, ...]:
    """Returns all runs, seed by seed, so that early results are paired.

    Raises:
        UserError: settings are wrong, or differ from the settings of earlier sessions.
    """
    runs: list[ArmRun] = []
    problems: list[str] = []
    for seed in seeds:
        for arm in arms:
            shared = settings_of_arm(recipe, arm, settings)
            name = f"{arm}-seed{seed}"
            location = {"name": name, "out": str(folder), "seed": str(seed)}
            keys = {**shared, **location, "scaling.workers": "1"}
            tree, unknown = on_recipe(f"{recipe}-{arm}", nest(keys))
            config, wrong = examine(tree)
            config, missing = resolve_runs(config)
            problems += [*unknown, *wrong, *missing]
            words = (f"recipe={recipe}-{arm}", *(f"{k}={as_typed(v)}" for k, v in keys.items()))
            run = ArmRun(arm, seed, RunFolder(folder / name), config, words)
            problems += _changed(run)
            runs.append(run)
    one_worker = runs[0].config.model_copy(update={"scaling": ScalingConfig()})
    problems += input_problems(one_worker, new_run=False)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return tuple(runs)


def settings_of_arm(recipe: str, arm: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that apply to an arm.

    These are settings of its form, MI weights with MI, and pretrained runs if staged.
    """
    off = "mi.weight" in _set_by(arm)
    mi = on_recipe(f"{recipe}-{arm}", {})[0].get("mi", {})
    form = str(settings.get("mi.form") or mi.get("form", "bounded"))
    staged = not off and mi.get("schedule") == "staged"
    without = (_WEIGHTS if off else set()) | (set() if staged else _REUSED)
    without = without | {f"mi.{key}" for key in foreign_keys(form)}
    return {key: value for key, value in settings.items() if key not in without}


def _changed(run: ArmRun) -> list[str]:
    """Returns a line if the run was started with other settings."""
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
    return [
        f"the comparison {run.folder.path.parent.name} was started with other settings "
        f"({difference(before, now, keys)}): give those settings to continue it, or another name"
    ]


COMMAND: Command[CompareOptions] = Command(
    "compare",
    CompareOptions,
    plan_comparison,
    "raymi.commands.compare.command:compare",
    default_recipe=DEFAULT,
)
