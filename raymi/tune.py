"""`python -m raymi.tune space=NAME recipe=NAME [tune.trials=N] [key=value ...]`: searches settings
for the highest robust accuracy on validation.

space: a file of tune_spaces/, by its name, or the path of one of your own. All other keys are those
of a run and hold for all trials; keys that the space varies cannot be given. Each trial is an
ordinary run, in one process, that never looks at the test set. resume=SWEEP goes on after whatever
ended it, with the trials that had begun from their last checkpoints.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from raymi.command import EXIT_FAILED, print_help, run_command
from raymi.config import Config, ScalingConfig
from raymi.display.sweep import SweepDisplay, print_sweep
from raymi.errors import UserError, did_you_mean
from raymi.hardware import available_cores, available_gpus
from raymi.orchestration.checks import input_problems
from raymi.orchestration.names import home_folder, with_found_runs
from raymi.orchestration.ray_session import in_ray_job, ray_session
from raymi.orchestration.signals import STOP_SECONDS, Stopped
from raymi.overrides import examine, expected, flatten, leaves, nest, split_words
from raymi.recipes import BASE_RECIPES, RECIPES, on_recipe
from raymi.sweeps.settings import TuneConfig
from raymi.sweeps.space import Space, find_space, known_spaces
from raymi.sweeps.study import Study
from raymi.sweeps.sweep import Definition, Sweep, find_sweep

COMMAND = "python -m raymi.tune"
USAGE = (
    f"{COMMAND} space=NAME [recipe=NAME] [name=NAME] [tune.trials=N] [key=value ...] | "
    "resume=SWEEP [--help]"
)
_TUNE = {f"tune.{key}": field for key, field in leaves(TuneConfig)}
_POLL_SECONDS = 0.1


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_tune, argv)


def _tune(words: list[str]) -> int:
    console = Console(highlight=False)
    if {"--help", "-h"} & set(words):
        return _help(console)
    sweep = _asked_for(words)
    with sweep.alone():
        return _search(console, sweep)


def _asked_for(words: Sequence[str]) -> Sweep:
    """The sweep that a command line begins, or continues.

    Raises: UserError with a line for each thing that is wrong.
    """
    own_keys = {"space": known_spaces(), "recipe": RECIPES, "resume": ()} | dict.fromkeys(_TUNE, ())
    parsed = split_words(words, own_keys)
    own, settings = parsed.own, flatten(parsed.settings)
    name, out = settings.pop("name", None), settings.pop("out", None)
    home = Path(out).expanduser().absolute() if out else home_folder() / "sweeps"
    problems = list(parsed.problems)
    if "resume" in own:
        more = sorted({*own, *settings} - {"resume"})
        if more:
            problems.append(
                f"{', '.join(more)} cannot change when a sweep is continued: begin a new one"
            )
        if problems:
            raise UserError("\n".join(problems))
        return find_sweep(own["resume"], home)
    tune, wrong = _tune_config(own)
    problems += wrong
    recipe = own.get("recipe", "quickstart")
    space = None
    if "space" not in own:
        problems.append(f"space=NAME is needed: {', '.join(known_spaces())}, or a .toml file")
    else:
        try:
            space = find_space(own["space"])
        except UserError as error:
            problems.append(str(error))
    settings["scaling.workers"] = settings.get("scaling.workers", "1")
    problems += _unfit(space, recipe, settings)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    assert space is not None
    name = name or f"{space.name}-{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    definition = Definition(
        id=uuid.uuid4().hex,
        command=f"{COMMAND} {shlex.join(words)}",
        space=space,
        recipe=recipe,
        settings=settings,
        tune=tune,
    )
    return Sweep.begin(home / name, definition)


def _tune_config(own: Mapping[str, str]) -> tuple[TuneConfig, list[str]]:
    given = {key.removeprefix("tune."): text for key, text in own.items() if key in _TUNE}
    try:
        return TuneConfig.model_validate(given), []
    except ValidationError as error:
        wrong = []
        for one in error.errors():
            key = f"tune.{one['loc'][0]}"
            wrong.append(f"{key}: expected {expected(_TUNE[key])}, got {one['input']!r}")
        return TuneConfig(), wrong


def _unfit(space: Space | None, recipe: str, settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with the recipe and the settings of all trials; a line each."""
    if recipe not in RECIPES:
        return [f"unknown recipe {recipe!r}: {did_you_mean(recipe, BASE_RECIPES)}"]
    problems = []
    if space is not None:
        varied = sorted(space.keys & set(settings))
        problems += [f"{key} cannot be set: the space {space.name} varies it" for key in varied]
        if (why := space.incompatible(recipe)) is not None:
            problems.append(f"the space {space.name} does not fit: {why}")
    tree, _ = on_recipe(recipe, nest(settings))
    config, wrong = examine(tree)
    config, missing = with_found_runs(config)
    if config.scaling.most_workers > 1:
        problems.append(
            f"scaling.workers must be 1, got {config.scaling.workers}: a trial is one process"
        )
    return [*problems, *wrong, *missing, *input_problems(config, new_run=False)]


def _search(console: Console, sweep: Sweep) -> int:
    """Brings a sweep to its end, shows what it found; returns the exit code."""
    study = sweep.study()
    sweep.stop_file.unlink(missing_ok=True)
    again = f"{COMMAND} resume={shlex.quote(_called(sweep))}"
    try:
        with SweepDisplay(console, sweep, study) as display:
            display.say(f"sweep {sweep.name} in {sweep.path}: {sweep.num_trials} trials")
            if _left(sweep, study):
                _run(sweep, study, display)
    except Stopped as stop:
        _say(console, f"stopped by {signal.Signals(stop.signum).name}; to continue: {again}")
        return 128 + stop.signum
    trials = list(study)
    best = {trial.number for trial in study.front()}
    print_sweep(console, sweep, trials, best)
    importance = study.importance()
    if importance:
        shares = ", ".join(f"{key} {100 * share:.0f}%" for key, share in importance.items())
        _say(console, f"differences between trials are due to: {shares}")
    if _left(sweep, study):
        _say(console, f"trials are left; to continue: {again}")
        return EXIT_FAILED
    if not best:
        _say(console, "no trial came to its end")
        return EXIT_FAILED
    for number in sorted(best):
        _say(console, f"best: trial {number}  {sweep.folder_of(number).path}")
    return 0


def _run(sweep: Sweep, study: Study, display: SweepDisplay) -> None:
    """Ray Tune in a thread, so that signals are ours to handle.

    Raises: Stopped, once all trials have a checkpoint.
    """
    config, tune = sweep.config_of({}), sweep.definition.tune
    scaling, gpus = _resources(config, tune.concurrent)
    errors: list[BaseException] = []
    with ray_session(scaling, dashboard=True) as resources:
        from raymi.orchestration.tuning import News, run_sweep

        def tell(news: News) -> None:
            display.news(news.kind, news.trial, news.measured)

        def body() -> None:
            try:
                run_sweep(
                    sweep,
                    study,
                    cpus=config.scaling.cpus_per_worker,
                    gpus=int(resources.use_gpu and gpus > 0),
                    concurrent=tune.concurrent,
                    tell=tell,
                )
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=body, daemon=True, name="ray-tune")
        received: list[int] = []

        def on_signal(signum: int, frame: Any) -> None:
            if received:
                raise Stopped(signum)
            received.append(signum)
            sweep.stop_file.touch()

        before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            thread.start()
            deadline = None
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
                if received and deadline is None:
                    deadline = time.monotonic() + STOP_SECONDS
                    display.say("the trials write a checkpoint and end; once more: at once")
                if deadline is not None and time.monotonic() > deadline:
                    break
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
    if received:
        raise Stopped(received[0])
    if errors:
        raise errors[0]


def _resources(config: Config, concurrent: int | None) -> tuple[ScalingConfig, int]:
    """What Ray is started with on this machine: places for as many trials as it has room for."""
    scaling = config.scaling
    gpus = 0 if scaling.use_gpu == "false" else len(available_gpus())
    most = gpus or max(1, available_cores() // scaling.cpus_per_worker)
    places = most if concurrent is None else min(most, concurrent)
    workers: int | str = "1..1000" if in_ray_job() else places
    return scaling.model_copy(update={"workers": workers}), gpus


def _left(sweep: Sweep, study: Study) -> bool:
    running = any(trial.state == "running" for trial in study)
    return running or len(study) < sweep.num_trials


def _called(sweep: Sweep) -> str:
    by_name = sweep.path.parent == home_folder() / "sweeps"
    return sweep.name if by_name else str(sweep.path)


def _say(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)


def _help(console: Console) -> int:
    named = {
        "spaces": {name: find_space(name).description for name in known_spaces()},
        "recipes": {name: recipe.description for name, recipe in BASE_RECIPES.items()},
        "how it searches": {
            key: f"({expected(field)}) {' '.join((field.description or '').split())}"
            for key, field in _TUNE.items()
        },
    }
    description = (__doc__ or "").partition(": ")[2]
    print_help(console, USAGE, description[:1].upper() + description[1:], named)
    return 0


if __name__ == "__main__":
    sys.exit(main())
