"""Lines and tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType

from raymi.terminal.console import Table, Terminal, literal

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


def table_of(rows: Sequence[Sequence[str]], *, left: int = 1, title: str | None = None) -> Table:
    """Returns a table of text.

    Args:
        rows: cells of each row; the first row is the header.
        left: number of columns that are aligned to the left.
        title: above the table.
    """
    header, *body = rows
    table = Table(title=title)
    for i, heading in enumerate(header):
        table.add_column(heading, justify="left" if i < left else "right", no_wrap=i == 0)
    for row in body:
        table.add_row(*row)
    return table


def print_rows(console: Console, rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Prints a table of text, in a log as wide as it needs to be."""
    show_table(console, table_of(rows, left=left))


def show_table(console: Console, table: RenderableType) -> None:
    """Prints a table: on a terminal within its width, in a log as wide as it needs to be."""
    if not console.is_terminal:
        console = Terminal(file=console.file, width=_WIDEST)
    console.print(table)
