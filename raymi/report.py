"""`python -m raymi.report RUN [RUN ...] [key=value ...]`: pictures and one page of runs.

RUN: the name or the folder of a run, or of a sweep, whose winner is shown. The page has learning
and robustness curves, natural and adversarial MI (the paper's Fig. 4), accuracy against the radius
of the attack, accuracy by class, adversarial images, and tables of all accuracies that were
measured (by the training and by raymi.evaluate) in the paper's layout. Only numbers of the same
images, threat and attack share a column. Of a run that is not finished it shows what there is.

The report attacks samples=N test images (500; 0: none) of each run with PGD of steps=N (20) at the
radii eps=A,B (1/4 to 4 times the run's own), once: the outcomes are kept in the run's folder.

out: folder of the report (reports/NAME): index.html, which needs nothing else, all pictures for
print, and the tables in Markdown and LaTeX. It is also put among the artifacts of the runs in
MLflow (report/NAME), unless tracking.enabled=false. Given again, the command replaces both.
"""

from __future__ import annotations

import sys

from rich.progress import TaskID

from raymi.commands.cli import print_help, run_command, wants_help
from raymi.commands.report.options import COMMAND, requested, takes
from raymi.commands.report.run import is_tracked, make_report, planned, track
from raymi.terminal.console import Terminal, progress_bar
from raymi.terminal.print_line import print_line
from raymi.tracking.store import how_to_open, without_password

USAGE = (
    f"{COMMAND} RUN [RUN ...] [out=FOLDER] [title=TEXT] [samples=N] [eps=A,B] [steps=N] "
    "[tracking.enabled=false] [--help]"
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_report, argv)


def _report(words: list[str]) -> int:
    console = Terminal()
    if wants_help(words):
        print_help(console, USAGE, __doc__, {}, takes)
        return 0
    request = requested(words)
    plans = planned(request)
    for plan in plans:
        for note in plan.notes:
            print_line(console, f"{plan.asked.name}: {note}", "yellow")
    with progress_bar(console) as bar:
        tasks: dict[str, TaskID] = {}

        def watch(name: str, done: int, of: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(f"attacking {name}", total=of)
            bar.update(tasks[name], completed=done)

        files = make_report(request, plans, lambda line: print_line(console, line, "yellow"), watch)
    print_line(console, f"report  {files[-1]}")
    if is_tracked(request):
        for told in track(request, plans, files):
            uri, names = without_password(told.uri), ", ".join(told.names)
            if told.problem:
                print_line(
                    console,
                    f"MLflow at {uri} did not take the report of {names}: {told.problem}; nothing "
                    f"is lost, deliver it with: {request.command}",
                )
            elif told.names:
                print_line(
                    console,
                    f"MLflow  report/{request.name} of {names}  ({how_to_open(told.uri)})",
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
