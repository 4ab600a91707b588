"""What all commands share: help, errors without tracebacks, exit codes.

Exit codes: 0 done; 1 the run failed; 2 the user can put it right; 128 + n ended by signal n (130:
Ctrl-C).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape

from raymi.errors import UserError
from raymi.overrides import default_text, expected, leaves

EXIT_FAILED, EXIT_USER = 1, 2


def run_command(body: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command and turns what it raises into one message and an exit code.

    Args: body, takes the words of the command line; argv, None: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    logging.captureWarnings(False)
    try:
        return body(words)
    except UserError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}")
        return EXIT_USER
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 130


def print_help(
    console: Console, usage: str, description: str, named: Mapping[str, Mapping[str, str]]
) -> None:
    """Prints usage, named things (recipes, data sets, models) and every key with type, default,
    text.

    Args: named, from a heading to names with a line of description each.
    """
    console.print(f"usage: {escape(usage)}\n\n{escape(description)}", highlight=False)
    for heading, entries in named.items():
        console.print(f"\n[bold]{heading}[/]")
        width = max(map(len, entries))
        for name, text in entries.items():
            console.print(f"  {name:<{width}}  {escape(text)}", highlight=False)
    console.print(
        "\n[bold]keys[/], set as key=value; a unique last part is enough (lr=1e-3, eps=8/255)"
    )
    for key, field in leaves():
        text = " ".join((field.description or "").split())
        default, accepts = escape(default_text(field)), escape(expected(field))
        console.print(
            f"  [bold]{key}[/]=[cyan]{default}[/]  ({accepts})\n      {escape(text)}",
            highlight=False,
        )
