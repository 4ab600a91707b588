"""Runs `python -m raymi.compare`, prints its table, and delivers it to MLflow."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from raymi.commands.cli import EXIT_FAILED
from raymi.commands.compare.options import Comparison
from raymi.commands.compare.report import ProgressPrinter, print_outcome, write_outcome
from raymi.commands.compare.results import RunResult
from raymi.commands.compare.run import run_all, slots
from raymi.commands.compare.tracking import finish_tracking, new_tracker, tracked_state
from raymi.files import file_lock, not_writable
from raymi.hardware import available_cores, available_gpus
from raymi.runs.record import warning_lines
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_line


def compare(comparison: Comparison) -> int:
    """Runs or continues a comparison; returns the exit code.

    Raises:
        UserError: another process runs the same comparison.
    """
    console = Terminal()
    try:
        comparison.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(comparison.folder, error) from None
    refusal = (
        f"another process runs the comparison {comparison.folder.name}: wait for it or stop it "
        "first"
    )
    with file_lock(comparison.folder / ".lock", refusal):
        return _run(console, comparison)


def _run(console: Console, comparison: Comparison) -> int:
    """Runs what is left, prints a line after each run, then the table; returns the exit code."""
    known = [(run, run.result()) for run in comparison.runs]
    results = [result for _, result in known if result is not None]
    pending = [run for run, result in known if result is None]
    printer = ProgressPrinter(console, comparison, len(pending))
    before = write_outcome(comparison, results)
    tracker = new_tracker(comparison, before, partial(print_line, console))

    def on_result(result: RunResult) -> None:
        results.append(result)
        printer.print_result(result)
        outcome = write_outcome(comparison, results)
        if tracker is not None:
            tracker.update(tracked_state(comparison, outcome))

    places = slots(comparison.parallel, available_cores(), available_gpus())
    signum = run_all(pending, places, on_result)
    print_outcome(console, comparison, write_outcome(comparison, results))
    failed = any(result.status == "failed" for result in results)
    code = 128 + signum if signum is not None else EXIT_FAILED if failed else 0
    if tracker is not None:
        status = "KILLED" if signum is not None else "FAILED" if failed else "FINISHED"
        code = finish_tracking(tracker, status, comparison.command) or code
    for line in warning_lines([run.folder for run in comparison.runs]):
        print_line(console, line)
    if signum is not None:
        print_line(console, f"stopped; to continue: {comparison.command}")
    return code
