"""One line for the terminal, as raymi prints all of them."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def say(console: Console, text: str, style: str = "") -> None:
    """Prints a text as it is: nothing in it is taken for markup, and no line is broken, so that a
    command or a path can be copied.

    Args: console; text; style, rich's, such as "bold".
    """
    console.print(Text(text, style), soft_wrap=True)
