"""Runs `python -m raymi.report` and prints where the report is."""

from __future__ import annotations

from rich.progress import TaskID

from raymi.commands.report.options import ReportPlan
from raymi.commands.report.run import make_report, read_inputs, upload_report
from raymi.terminal.console import Terminal, progress_bar
from raymi.terminal.print_line import print_line
from raymi.tracking.store import how_to_open, without_password


def report(plan: ReportPlan) -> int:
    """Makes a report and logs it to MLflow; returns the exit code.

    Raises:
        UserError: a run cannot be read.
        StorageError: a file cannot be written.
    """
    console = Terminal()

    def warn(line: str) -> None:
        print_line(console, line, "yellow")

    inputs = read_inputs(plan)
    for one in inputs:
        for note in one.notes:
            warn(f"{one.run.name}: {note}")
    with progress_bar(console) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(f"attacking {name}", total=total)
            bar.update(tasks[name], completed=done)

        files = make_report(plan, inputs, warn, on_progress)
    print_line(console, f"report  {files[-1]}")
    for upload in upload_report(plan, inputs, files):
        names = ", ".join(upload.runs)
        if upload.problem:
            warn(
                f"cannot log the report of {names} to MLflow at {without_password(upload.uri)}: "
                f"{upload.problem}; to try again: {plan.command}"
            )
        elif upload.runs:
            print_line(
                console,
                f"MLflow  report/{plan.name} of {names}  ({how_to_open(upload.uri)})",
            )
    return 0
