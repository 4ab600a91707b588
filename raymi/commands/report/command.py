"""Command `python -m raymi.report`: draws pictures and one HTML page of runs.

RUN: the name or the folder of a run, or of a sweep, which stands for its winner. The page has
learning and robustness curves, natural and adversarial MI (Fig. 4 of the paper), accuracy against
the radius of the attack, accuracy by class, adversarial images, and tables of all saved accuracies
(of the training and of raymi.evaluate) in the layout of the paper. Only numbers of the same images,
threat and attack share a column. An unfinished run is shown up to its last epoch.

The report attacks test images with PGD at several radii. The outcomes are saved in the run's folder
for the next report. The folder of the report has index.html, which is self-contained, all pictures
for print, and the tables in Markdown and LaTeX. The report is also logged among the artifacts of
the runs in MLflow (report/NAME), unless tracking.enabled=false. Given again, the command replaces
both.
"""

from __future__ import annotations

from rich.progress import TaskID

from raymi.commands.cli import print_help, wants_help
from raymi.commands.report.options import COMMAND, ReportOptions, is_setting, plan_report
from raymi.commands.report.run import make_report, read_inputs, upload_report
from raymi.terminal.console import Terminal, progress_bar
from raymi.terminal.print_line import print_line
from raymi.tracking.store import how_to_open, without_password

USAGE = (
    f"{COMMAND} RUN [RUN ...] [out=FOLDER] [title=TEXT] [samples=N] [eps=A,B] [steps=N] "
    "[tracking.enabled=false] [--help]"
)


def report(words: list[str]) -> int:
    """Makes a report and logs it to MLflow.

    Args:
        words: of the command line.

    Returns:
        The exit code.

    Raises:
        UserError: words are wrong, or a run cannot be read.
        StorageError: a file cannot be written.
    """
    console = Terminal()
    if wants_help(words):
        print_help(console, USAGE, __doc__, {}, is_setting, ReportOptions)
        return 0

    def warn(line: str) -> None:
        print_line(console, line, "yellow")

    plan = plan_report(words)
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
