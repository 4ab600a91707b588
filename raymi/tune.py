"""`python -m raymi.tune space=NAME recipe=NAME [tune.trials=N] [key=value ...]`: searches settings
for the highest robust accuracy on validation.

space: a file of tune_spaces/, by its name, or the path of one of your own. All other keys are those
of a run and hold for all trials; keys that the space varies cannot be given. Each trial is an
ordinary run that never looks at the test set, of one process or, with scaling.workers=N, of
several. seeds=0..9 repeats every trial, and compares them in pairs.

The best trials are attacked harder, on validation images still: by PGD-40, and the best of these by
AutoAttack. The winner alone is measured on the test set, logged and registered in MLflow.

resume=SWEEP goes on after whatever ended it, with the trials that had begun from their last
checkpoints.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from rich.console import Console

from raymi.command import EXIT_FAILED, print_help, run_command
from raymi.display.evaluation import EvaluationDisplay, print_report
from raymi.display.say import say
from raymi.display.sweep import SweepDisplay, print_sweep
from raymi.evaluation.steps import StepFailed
from raymi.orchestration.evaluation_run import evaluate
from raymi.orchestration.signals import Stopped
from raymi.orchestration.sweep_request import COMMAND, TUNE, asked_for, to_continue
from raymi.orchestration.sweep_run import (
    Finalist,
    Place,
    best_run,
    candidates,
    complete,
    judge,
    plan_of,
    sweep_place,
    train_trials,
)
from raymi.overrides import expected
from raymi.recipes import BASE_RECIPES
from raymi.sweeps.results import results
from raymi.sweeps.space import find_space, known_spaces
from raymi.sweeps.study import Study
from raymi.sweeps.sweep import Run, Sweep

USAGE = (
    f"{COMMAND} space=NAME [recipe=NAME] [name=NAME] [seeds=0..9] [tune.trials=N] [key=value ...] "
    "| resume=SWEEP [--help]"
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_tune, argv)


def _tune(words: list[str]) -> int:
    console = Console(highlight=False)
    if {"--help", "-h"} & set(words):
        return _help(console)
    sweep = asked_for(words)
    with sweep.alone():
        try:
            return _search(console, sweep, sweep.study())
        except (Stopped, KeyboardInterrupt) as stop:
            signum = stop.signum if isinstance(stop, Stopped) else signal.SIGINT
            name = signal.Signals(signum).name
            say(console, f"stopped by {name}; to continue: {to_continue(sweep)}")
            return 128 + signum
        except StepFailed as failure:
            say(console, f"an attack failed: {failure}; to continue: {to_continue(sweep)}")
            return EXIT_FAILED


def _search(console: Console, sweep: Sweep, study: Study) -> int:
    """Brings a sweep to its end, shows what it found; returns the exit code."""
    sweep.stop_file.unlink(missing_ok=True)
    say(console, f"sweep {sweep.name} in {sweep.path}: {sweep.num_trials} trials")
    with sweep_place(sweep) as place:
        if _left(sweep, study):
            with SweepDisplay(console, sweep, study) as display:
                train_trials(sweep, study, place, display)
        finalists: list[Finalist] = []
        if not _left(sweep, study):
            with EvaluationDisplay(console) as shown:
                finalists = judge(sweep, study, place, shown)
        _show(console, sweep, study, finalists)
        if _left(sweep, study):
            say(console, f"trials are left; to continue: {to_continue(sweep)}")
            return EXIT_FAILED
        best = [one.number for one in finalists] or candidates(sweep, study)
        if not best:
            say(console, "no trial came to its end")
            return EXIT_FAILED
        run = finalists[0].run if finalists else best_run(sweep, best[0])
        _measure_winner(console, sweep, run, place)
    return 0


def _show(console: Console, sweep: Sweep, study: Study, finalists: Sequence[Finalist]) -> None:
    print_sweep(console, sweep, results(sweep, list(study)), finalists)
    importance = study.importance()
    if importance:
        shares = ", ".join(f"{key} {100 * share:.0f}%" for key, share in importance.items())
        say(console, f"differences between trials are due to: {shares}")


def _measure_winner(console: Console, sweep: Sweep, run: Run, place: Place) -> None:
    """The only look at the test set."""
    folder, suite = sweep.folder_of(run), sweep.definition.tune.test_suite
    if suite != "none":
        complete(sweep, run, place)
        plan = plan_of(sweep, [run], place, "split=test", f"suite={suite}")
        with EvaluationDisplay(console) as shown:
            reports, _ = evaluate(plan, shown, place.resources)
        print_report(console, reports[0])
    say(console, f"winner: trial {run.number}  {folder.path}")


def _left(sweep: Sweep, study: Study) -> bool:
    running = any(trial.state == "running" for trial in study)
    return running or len(study) < sweep.num_trials


def _help(console: Console) -> int:
    named = {
        "spaces": {name: find_space(name).description for name in known_spaces()},
        "recipes": {name: recipe.description for name, recipe in BASE_RECIPES.items()},
        "how it searches": {
            key: f"({expected(field)}) {' '.join((field.description or '').split())}"
            for key, field in TUNE.items()
        },
    }
    description = (__doc__ or "").partition(": ")[2]
    print_help(console, USAGE, description[:1].upper() + description[1:], named)
    return 0


if __name__ == "__main__":
    sys.exit(main())
