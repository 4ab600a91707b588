"""Lines and tables for the terminal, as raymi prints all of them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDEST = 1000


def say(console: Console, text: str, style: str = "") -> None:
    """Prints a text as it is: nothing in it is taken for markup, and no line is broken, so that a
    command or a path can be copied.

    Args: console; text; style, rich's, such as "bold".
    """
    console.print(Text(text, style), soft_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Prints a table: on a terminal within its width, in a log as wide as it needs to be."""
    if not console.is_terminal:
        console = Console(file=console.file, width=_WIDEST, highlight=False)
    console.print(table)
