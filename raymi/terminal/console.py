"""Terminal output of raymi; nothing in it is markup.

Names of runs, classes, folders and models are shown literally. rich would take `[red]` for a
colour, fail at `[/]`, and pass escape codes on to the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.progress import TimeRemainingColumn as _TimeRemaining
from rich.segment import Segment
from rich.table import Table as _Table
from rich.text import Text

from raymi.formatting import printable


class Terminal(Console):
    """Console without markup, emoji codes and highlighting, which escapes control characters.

    Args:
        stderr: write to stderr instead of stdout.
        options: rich's own.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        plain = {"markup": False, "emoji": False, "highlight": False}
        super().__init__(stderr=stderr, **{**plain, **options})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Renders as rich does, with control characters of texts escaped."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text, keep="\n"), segment.style)


def literal(text: str, style: str = "") -> Text:
    """Returns a text that is shown as it is, with control characters escaped."""
    return Text(printable(text), style)


class Table(_Table):
    """Table whose headings, cells and title are literal."""

    def __init__(self, *headers: Any, title: str | None = None, **options: Any) -> None:
        named = None if title is None else literal(title, "table.title")
        super().__init__(*headers, title=named, **options)

    def add_column(self, header: RenderableType = "", *args: Any, **options: Any) -> None:
        """Adds a column."""
        super().add_column(_cell(header), *args, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Adds a row."""
        super().add_row(*(None if cell is None else _cell(cell) for cell in cells), **options)


class LiteralColumn(TextColumn):
    """Column of a progress bar whose text is literal.

    Args:
        text: a format string with `task`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text, markup=False)

    def render(self, task: Task) -> Text:
        """Returns the text of a task."""
        return literal(super().render(task).plain)


def progress_bar(console: Console, *columns: ProgressColumn) -> Progress:
    """Returns a progress bar that is seen on a terminal only, and gone at its end.

    Args:
        console: where it is shown.
        columns: none: description, bar, percentage, time left.
    """
    usual = (LiteralColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    shown = columns or (*usual, _TimeRemaining())
    return Progress(*shown, console=console, transient=True, disable=not console.is_terminal)


def _cell(cell: RenderableType) -> RenderableType:
    return literal(cell) if isinstance(cell, str) else cell
