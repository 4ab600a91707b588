"""`python -m raymi.compare [recipe=NAME] [arms=A,B] [seeds=0..9] [key=value ...]`: compares
variants of one recipe over seeds, in pairs, without Ray and MLflow.

Runs of the same seed share data order, augmentation, attack starts and initial weights; what is
compared is the difference, seed by seed, to the first arm. Each arm and seed is an ordinary run in
`out`/`name`/ARM-seedK (runs/RECIPE-comparison), trained by `python -m raymi.standalone` on one
device. The command given again continues: finished runs stay, others go on from their last
checkpoint. Losses that are not finite are a result, "diverged"; to try such a run again, delete its
folder.

arms: variants of the recipe, the first one the reference. seeds: 0..9, or 0,1,2. parallel: runs at
once, by default one for each GPU, or for each CPU core. All other keys are those of a run and hold
for all arms; an arm without MI stays without, whatever mi.weight or mi.balance says, and
mi.pretrained and mi.estimators reach staged arms only.

It ends with a table, also in `comparison.md`, and all numbers in `comparison.json`.
"""

from __future__ import annotations

import sys

from rich.console import Console

from raymi.commands.cli import EXIT_FAILED, print_help, run_command, wants_help
from raymi.commands.compare.options import ARMS, Comparison, planned
from raymi.commands.compare.report import Progress, keep, show
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


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_compare, argv)


def _compare(words: list[str]) -> int:
    console = Terminal()
    if wants_help(words):
        return _help(console)
    comparison = planned(words)
    try:
        comparison.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(comparison.folder, error) from None
    refusal = (
        f"the comparison {comparison.folder.name} is running in another process: wait for it or "
        "stop it first"
    )
    with file_lock(comparison.folder / ".lock", refusal):
        return _run(console, comparison)


def _run(console: Console, comparison: Comparison) -> int:
    """Runs what is left, prints a line for each end, then the table; returns the exit code."""
    results: list[RunResult] = []
    left = []
    for run in comparison.runs:
        if (result := run.result()) is None:
            left.append(run)
        else:
            results.append(result)
    progress = Progress(console, comparison, len(left))

    def ended(result: RunResult) -> None:
        results.append(result)
        progress.ended(result)
        keep(comparison, results)

    places = slots(comparison.parallel, available_cores(), available_gpus())
    signum = run_all(left, places, ended)
    show(console, comparison, keep(comparison, results))
    for line in warning_lines([run.folder for run in comparison.runs]):
        print_line(console, line)
    if signum is not None:
        print_line(console, f"stopped; to continue: {comparison.command}")
        return 128 + signum
    return EXIT_FAILED if any(result.status == "failed" for result in results) else 0


def _help(console: Console) -> int:
    named = {
        "recipes": {name: recipe.description for name, recipe in BASE_RECIPES.items()},
        f"arms, by default {ARMS}": {
            name: variant.description for name, variant in VARIANTS.items()
        },
    }
    print_help(console, USAGE, __doc__, named)
    return 0


if __name__ == "__main__":
    sys.exit(main())
