"""`python -m raymi.select`: points an alias of the MLflow registry at the most robust model."""

from __future__ import annotations

import sys
from functools import partial

from raymi.commands.cli import print_help, run_command, wants_help
from raymi.commands.select import options
from raymi.commands.select.run import select_model
from raymi.terminal.console import Terminal
from raymi.terminal.selection import print_choice, print_ranking


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_select, argv)


def _select(words: list[str]) -> int:
    console = Terminal()
    if wants_help(words):
        print_help(console, options.USAGE, options.__doc__, {}, lambda key: False)
        return 0
    print_choice(console, *select_model(options.requested(words), partial(print_ranking, console)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
