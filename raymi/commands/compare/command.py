"""Command `python -m raymi.compare`: compares variants of one recipe over seeds, in pairs, without
Ray and MLflow.

Runs with the same seed share data order, augmentation, attack starts and initial weights. The
compared number is the difference to the first arm, seed by seed. Each arm and seed is an ordinary
run in `out`/`name`/ARM-seedK (runs/RECIPE-comparison), trained by `python -m raymi.standalone` on
one device. Given again, the command continues: it keeps finished runs, and resumes others from
their last checkpoint. Losses that are not finite are a result, "diverged"; delete the folder of
such a run to try it again.

All keys are settings of a run and apply to all arms. An arm without MI ignores mi.weight and
mi.balance, and only staged arms use mi.pretrained and mi.estimators.

The closing table is also in `comparison.md`, and all numbers are in `comparison.json`.
"""

from __future__ import annotations

from rich.console import Console

from raymi.commands.cli import EXIT_FAILED, print_help, wants_help
from raymi.commands.compare.options import CompareOptions, Comparison, plan_comparison
from raymi.commands.compare.report import ProgressPrinter, print_outcome, write_outcome
from raymi.commands.compare.results import RunResult
from raymi.commands.compare.run import run_all, slots
from raymi.files import file_lock, not_writable
from raymi.hardware import available_cores, available_gpus
from raymi.recipes import BASE_RECIPES, VARIANTS
from raymi.runs.record import warning_lines
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_line

USAGE = (
    "python -m raymi.compare [recipe=NAME] [arms=A,B,...] [seeds=0..9 | seeds=0,1,2] "
    "[parallel=N] [name=NAME] [out=FOLDER] [key=value ...] [--help]"
)


def compare(words: list[str]) -> int:
    """Runs or continues a comparison.

    Args:
        words: of the command line.

    Returns:
        The exit code.

    Raises:
        UserError: a word is wrong, or another process runs the same comparison.
    """
    console = Terminal()
    if wants_help(words):
        named = {
            "recipes": {name: recipe.description for name, recipe in BASE_RECIPES.items()},
            "arms": {name: variant.description for name, variant in VARIANTS.items()},
        }
        print_help(console, USAGE, __doc__, named, options=CompareOptions)
        return 0
    comparison = plan_comparison(words)
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

    def on_result(result: RunResult) -> None:
        results.append(result)
        printer.print_result(result)
        write_outcome(comparison, results)

    places = slots(comparison.parallel, available_cores(), available_gpus())
    signum = run_all(pending, places, on_result)
    print_outcome(console, comparison, write_outcome(comparison, results))
    for line in warning_lines([run.folder for run in comparison.runs]):
        print_line(console, line)
    if signum is not None:
        print_line(console, f"stopped; to continue: {comparison.command}")
        return 128 + signum
    return EXIT_FAILED if any(result.status == "failed" for result in results) else 0
