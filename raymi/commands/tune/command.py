"""Runs `python -m raymi.tune`: trials, final evaluation, winner."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from raymi.commands.cli import EXIT_FAILED
from raymi.commands.evaluate.run import evaluate, track
from raymi.commands.tune.final_evaluation import (
    evaluate_finalists,
    evaluation_plan,
    select_winner,
)
from raymi.commands.tune.options import resume_command
from raymi.errors import StorageError, UserError
from raymi.evaluation.attack_task import StepFailed
from raymi.ray_backend.tune_driver import (
    SweepWorkspace,
    evaluate_winner,
    open_sweep_workspace,
    train_trials,
)
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
from raymi.tuning.events import TrialEvent
from raymi.tuning.results_table import SweepResult, trial_rows
from raymi.tuning.sweep_folder import Sweep, TrialRun


def tune_command(sweep: Sweep) -> int:
    """Runs a sweep; returns the exit code."""
    console = Terminal()
    with sweep.lock():
        return _Search(console, sweep).run()


class _Search:
    """Runs a sweep to its end and reports to the terminal and to MLflow."""

    def __init__(self, console: Console, sweep: Sweep) -> None:
        self.console, self.sweep, self.study = console, sweep, sweep.study()
        self.result = SweepResult()
        self.tracker: SweepTracker | None = None
        if sweep.config_of({}).tracking.enabled:
            self.tracker = SweepTracker(sweep, self.study, home_folder(), self.print_line)
        self._display: SweepDisplay | None = None

    def run(self) -> int:
        """Runs the sweep; returns the exit code."""
        self.sweep.stop_file.unlink(missing_ok=True)
        self.print_line(
            f"sweep {self.sweep.name} in {self.sweep.path}: {self.sweep.num_trials} trials"
        )
        if self.tracker is not None:
            self.tracker.start()
        resume = f"to continue: {resume_command(self.sweep)}"
        status, code = "FAILED", EXIT_FAILED
        try:
            if self._search():
                status, code = "FINISHED", 0
            else:
                self.print_line(resume if self._has_trials_left else "no trial has finished")
        except (Stopped, KeyboardInterrupt) as error:
            stop = Stopped.of(error)
            status, code = "KILLED", stop.exit_code
            self.print_line(f"stopped by {stop.name}; {resume}")
        except UserError as error:
            raise UserError(f"{error}\n{resume}") from None
        except (StepFailed, StorageError) as failure:
            self.print_line(f"{failure}; {resume}", style="red")
        finally:
            code = self._finish_tracking(status, resume) or code
        return code

    def print_line(self, message: str, style: str = "") -> None:
        """Prints a message; from any thread."""
        print_lines(self.console, message, style)

    def on_trial_event(self, event: TrialEvent) -> None:
        """Passes an event on to the display and the tracker; from any thread."""
        if self._display is not None:
            self._display.on_trial_event(event)
        if self.tracker is not None:
            self.tracker.on_trial_event(event)

    def _search(self) -> bool:
        """Trains, evaluates and prints; returns whether the sweep has a winner."""
        on_signal = nothing if self.tracker is None else self.tracker.interrupt
        with (
            ended_by_sigterm(on_signal),
            open_sweep_workspace(self.sweep, self.print_line) as workspace,
        ):
            if self._has_trials_left:
                with SweepDisplay(self.console, self.sweep, self.study) as self._display:
                    train_trials(self.sweep, self.study, workspace, self, on_signal)
            if self._has_trials_left:
                self._print_trials()
                return False
            with EvaluationDisplay(self.console) as display:
                finalists = evaluate_finalists(self.sweep, self.study, workspace, display)
            winner = select_winner(self.sweep, self.study, finalists)
            self.result = SweepResult(winner, finalists)
            self._print_trials()
            if winner is None:
                return False
            if self.sweep.definition.tune.test_suite != "none":
                self._test(winner, workspace)
            path = self.sweep.folder_of(winner).path
            self.print_line(f"winner: trial {winner.number}  {path}")
            return True

    @property
    def _has_trials_left(self) -> bool:
        running = any(trial.state == "running" for trial in self.study)
        return running or len(self.study) < self.sweep.num_trials

    def _print_trials(self) -> None:
        rows = trial_rows(self.sweep, self.study, self.result.finalists)
        print_sweep(self.console, self.sweep, rows)
        runs = [run for trial in self.study for run in self.sweep.runs_of(trial.number)]
        for line in warning_lines([self.sweep.folder_of(run) for run in runs]):
            self.print_line(line)
        if importance := self.study.importance():
            shares = ", ".join(f"{key} {100 * share:.0f}%" for key, share in importance.items())
            self.print_line(f"importance of the parameters: {shares}")

    def _test(self, run: TrialRun, workspace: SweepWorkspace) -> None:
        """Evaluates the winner on the test set, first by the run's attack, then by the suite."""
        evaluate_winner(self.sweep, run, workspace)
        if self.tracker is not None:  # the evaluation is logged to the run's model
            self.tracker.on_trial_event(TrialEvent("finished", run, self.study[run.number]))
            self.tracker.flush(0.0 if self.tracker.fails else FINISH_SECONDS)
        suite = self.sweep.definition.tune.test_suite
        plan = evaluation_plan(self.sweep, [run], workspace, "split=test", f"suite={suite}")
        with EvaluationDisplay(self.console) as display:
            reports, _ = evaluate(plan, display, workspace.resources)
        print_report(self.console, reports[0])
        accuracies = {result.name: result.accuracy for result in reports[0].results}
        self.result = replace(self.result, test=accuracies, num_test=reports[0].num)
        for tracked in track(plan, reports) if self.tracker is not None else ():
            if tracked.run_id is None:
                self.print_line(
                    f"cannot log the evaluation of {tracked.name} to MLflow: {tracked.problem}"
                )

    def _finish_tracking(self, status: str, resume: str) -> int:
        """Uploads the rest of the sweep to MLflow; a signal interrupts it.

        Returns:
            0, or the exit code after a signal.
        """
        if self.tracker is None:
            return 0
        timeout = FINISH_SECONDS if status == "FINISHED" else FAIL_SECONDS
        try:
            with ended_by_sigterm(self.tracker.interrupt):
                if self.tracker.conclude(status, timeout, self.result):
                    self.print_line(
                        f"MLflow run {self.tracker.run_id}  ({how_to_open(self.tracker.uri)})"
                    )
                else:
                    self.print_line(self.tracker.undelivered(resume))
            return 0
        except (Stopped, KeyboardInterrupt) as error:
            stop = Stopped.of(error)
            self.tracker.break_off()
            self.print_line(
                f"stopped by {stop.name} before the upload to MLflow was "
                f"complete; nothing is lost, {resume}"
            )
            return stop.exit_code
