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

import sys
from dataclasses import replace

from rich.console import Console

from raymi.commands.cli import EXIT_FAILED, print_help, run_command, wants_help
from raymi.commands.evaluate.run import evaluate, track
from raymi.commands.tune.options import COMMAND, TUNE, asked_for, to_continue
from raymi.commands.tune.run import (
    Place,
    complete,
    judge,
    plan_of,
    sweep_workspace,
    train_trials,
    winner,
)
from raymi.errors import StorageError, UserError
from raymi.evaluation.attack_task import StepFailed
from raymi.overrides import expected
from raymi.recipes import BASE_RECIPES
from raymi.runs.record import warning_lines
from raymi.runs.run_paths import home_folder
from raymi.signals import Stopped, ended_by_sigterm, nothing
from raymi.terminal.console import Terminal
from raymi.terminal.evaluation import EvaluationDisplay, print_report
from raymi.terminal.print_line import print_lines
from raymi.terminal.sweep import SweepDisplay, print_sweep
from raymi.tracking.delivery import FAIL_SECONDS, FINISH_SECONDS
from raymi.tracking.store import how_to_open
from raymi.tracking.sweep_tracker import SweepTracker
from raymi.tuning.events import News
from raymi.tuning.results_table import Found, trial_rows
from raymi.tuning.space import find_space
from raymi.tuning.space_files import known_spaces
from raymi.tuning.sweep_folder import Sweep, TrialRun

USAGE = (
    f"{COMMAND} space=NAME [recipe=NAME] [name=NAME] [seeds=0..9] [tune.trials=N] [key=value ...] "
    "| resume=SWEEP [--help]"
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_tune, argv)


def _tune(words: list[str]) -> int:
    console = Terminal()
    if wants_help(words):
        return _help(console)
    sweep = asked_for(words)
    with sweep.lock():
        return _Search(console, sweep).run()


class _Search:
    """A sweep from where it is to its end; tells the terminal and MLflow."""

    def __init__(self, console: Console, sweep: Sweep) -> None:
        self.console, self.sweep, self.study = console, sweep, sweep.study()
        self.found = Found()
        self.tracker: SweepTracker | None = None
        if sweep.config_of({}).tracking.enabled:
            self.tracker = SweepTracker(sweep, self.study, home_folder(), self.print_line)
        self._display: SweepDisplay | None = None

    def run(self) -> int:
        """Brings it to its end; returns the exit code."""
        self.sweep.stop_file.unlink(missing_ok=True)
        self.print_line(
            f"sweep {self.sweep.name} in {self.sweep.path}: {self.sweep.num_trials} trials"
        )
        if self.tracker is not None:
            self.tracker.start()
        again, status, code = f"to continue: {to_continue(self.sweep)}", "FAILED", EXIT_FAILED
        try:
            if self._search():
                status, code = "FINISHED", 0
            else:
                self.print_line(again if self._left else "no trial came to its end")
        except (Stopped, KeyboardInterrupt) as error:
            stop = Stopped.of(error)
            status, code = "KILLED", stop.exit_code
            self.print_line(f"stopped by {stop.name}; {again}")
        except UserError as error:
            raise UserError(f"{error}\n{again}") from None
        except (StepFailed, StorageError) as failure:
            self.print_line(f"{failure}; {again}", style="red")
        finally:
            code = self._conclude(status, again) or code
        return code

    def print_line(self, message: str, style: str = "") -> None:
        """Prints a line; from any thread."""
        print_lines(self.console, message, style)

    def news(self, news: News) -> None:
        """Takes what happened to a run; from any thread."""
        if self._display is not None:
            self._display.news(news)
        if self.tracker is not None:
            self.tracker.on_trial_event(news)

    def _search(self) -> bool:
        """Trains, judges, shows; whether there is a winner."""
        on_signal = nothing if self.tracker is None else self.tracker.interrupt
        with ended_by_sigterm(on_signal), sweep_workspace(self.sweep, self.print_line) as place:
            if self._left:
                with SweepDisplay(self.console, self.sweep, self.study) as self._display:
                    train_trials(self.sweep, self.study, place, self, on_signal)
            if self._left:
                self._show()
                return False
            with EvaluationDisplay(self.console) as shown:
                finalists = judge(self.sweep, self.study, place, shown)
            self.found = Found(winner(self.sweep, self.study, finalists), finalists)
            self._show()
            if self.found.winner is None:
                return False
            if self.sweep.definition.tune.test_suite != "none":
                self._measure(self.found.winner, place)
            name = self.sweep.folder_of(self.found.winner).path
            self.print_line(f"winner: trial {self.found.winner.number}  {name}")
            return True

    @property
    def _left(self) -> bool:
        """Whether there are trials to train."""
        running = any(trial.state == "running" for trial in self.study)
        return running or len(self.study) < self.sweep.num_trials

    def _show(self) -> None:
        rows = trial_rows(self.sweep, self.study, self.found.finalists)
        print_sweep(self.console, self.sweep, rows)
        runs = [run for trial in self.study for run in self.sweep.runs_of(trial.number)]
        for line in warning_lines([self.sweep.folder_of(run) for run in runs]):
            self.print_line(line)
        if importance := self.study.importance():
            shares = ", ".join(f"{key} {100 * share:.0f}%" for key, share in importance.items())
            self.print_line(f"differences between trials are due to: {shares}")

    def _measure(self, run: TrialRun, place: Place) -> None:
        """The only look at the test set: by the run's own attack, then by the sweep's."""
        complete(self.sweep, run, place)
        if self.tracker is not None:  # its model must be there to be told of
            self.tracker.on_trial_event(News("finished", run, self.study[run.number]))
            self.tracker.flush(0.0 if self.tracker.fails else FINISH_SECONDS)
        suite = self.sweep.definition.tune.test_suite
        plan = plan_of(self.sweep, [run], place, "split=test", f"suite={suite}")
        with EvaluationDisplay(self.console) as shown:
            reports, _ = evaluate(plan, shown, place.resources)
        print_report(self.console, reports[0])
        accuracies = {result.name: result.accuracy for result in reports[0].results}
        self.found = replace(self.found, test=accuracies, num_test=reports[0].num)
        for told in track(plan, reports) if self.tracker is not None else ():
            if told.run_id is None:
                self.print_line(
                    f"MLflow did not take the evaluation of {told.name}: {told.problem}"
                )

    def _conclude(self, status: str, again: str) -> int:
        """Delivers the rest of the sweep; a signal interrupts it.

        Returns:
            0, or the exit code of an end by a signal.
        """
        if self.tracker is None:
            return 0
        timeout = FINISH_SECONDS if status == "FINISHED" else FAIL_SECONDS
        try:
            with ended_by_sigterm(self.tracker.interrupt):
                if self.tracker.conclude(status, timeout, self.found):
                    self.print_line(
                        f"MLflow run {self.tracker.run_id}  ({how_to_open(self.tracker.uri)})"
                    )
                else:
                    self.print_line(self.tracker.undelivered(again))
            return 0
        except (Stopped, KeyboardInterrupt) as error:
            stop = Stopped.of(error)
            self.tracker.break_off()
            self.print_line(
                f"stopped by {stop.name} before MLflow had everything; nothing is lost, deliver it "
                f"with: {again}"
            )
            return stop.exit_code


def _help(console: Console) -> int:
    named = {
        "spaces": {name: find_space(name).description for name in known_spaces()},
        "recipes": {name: recipe.description for name, recipe in BASE_RECIPES.items()},
        "how it searches": {
            key: f"({expected(field)}) {' '.join((field.description or '').split())}"
            for key, field in TUNE.items()
        },
    }
    print_help(console, USAGE, __doc__, named)
    return 0


if __name__ == "__main__":
    sys.exit(main())
