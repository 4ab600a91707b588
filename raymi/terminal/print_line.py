"""Lines and tables for the terminal."""

from __future__ import annotations

from rich.console import Console, RenderableType

from raymi.terminal.console import Terminal, literal

_WIDEST = 1000


def print_line(console: Console, text: str, style: str = "") -> None:
    """Prints a line as it is: without markup or line breaks, so that a command can be copied.

    Args:
        console: where it is printed.
        text: the line; control characters are escaped, line ends too.
        style: rich's, such as "bold".
    """
    console.print(literal(text, style), soft_wrap=True)


def print_lines(console: Console, text: str, style: str = "") -> None:
    """Prints a text of several lines, each as `print_line` does."""
    for line in text.split("\n"):
        print_line(console, line, style)


def show_table(console: Console, table: RenderableType) -> None:
    """Prints a table: on a terminal within its width, in a log as wide as it needs to be."""
    if not console.is_terminal:
        console = Terminal(file=console.file, width=_WIDEST)
    console.print(table)
