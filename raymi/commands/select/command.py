"""Runs `python -m raymi.select` and prints the ranking and the choice."""

from __future__ import annotations

from functools import partial

from raymi.commands.select.options import SelectRequest
from raymi.commands.select.run import select_model
from raymi.terminal.console import Terminal
from raymi.terminal.selection import print_choice, print_ranking


def select_command(request: SelectRequest) -> int:
    """Chooses a model and points an alias at it; returns the exit code.

    Raises:
        UserError: no model is eligible, or the store fails.
    """
    console = Terminal()
    ranking, update = select_model(request, partial(print_ranking, console))
    print_choice(console, ranking, update)
    return 0
