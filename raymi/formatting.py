"""Text for people: control characters escaped, long values shortened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1: ESC begins colours, links and titles of terminals
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # direction, invisible
    "\u2028\u2029\ud800-\udfff\U000e0000-\U000e007f]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

LONGEST_VALUE = 200
"""Characters of a user's value that a message repeats."""

_LONGEST_GIVEN = 1000  # paths and commands below it can be copied
_MOST_LINES = 60
_LONGEST_LINE = 4000


def printable(text: str | Path, *, keep: str = "") -> str:
    """Returns a text in which terminals and browsers see letters only.

    Control characters, marks of writing direction and invisible characters become escapes such as
    `\\x1b`; names from files, folders and servers may have any of them.

    Args:
        text: any text or path.
        keep: control characters that stay, such as the line ends of a message.
    """
    letters = str(text)
    if letters.isprintable():
        return letters
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), letters)


def _escape(letter: str) -> str:
    code = ord(letter)
    if letter in _SHORT:
        return _SHORT[letter]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def table_cell(text: str) -> str:
    """Returns a text as the cell of a Markdown table."""
    return printable(text).replace("|", "\\|")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of text as a Markdown table; the first row is the header."""
    header, *others = rows
    lines = [header, ["---"] * len(header), *others]
    return "\n".join(f"| {' | '.join(map(table_cell, line))} |" for line in lines)


def accuracy_text(accuracy: float, low: float, high: float) -> str:
    """Returns an accuracy and its interval, fractions, as text: `71.3% (66.4-75.8)`."""
    return f"{100 * accuracy:.1f}% ({100 * low:.1f}-{100 * high:.1f})"


def listed(names: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """Returns the first names of a list for a message, and the number of the others.

    Args:
        names: any number of texts.
        most: number of texts that are listed.
        between: separator.
    """
    more = f" (and {len(names) - most} more)" if len(names) > most else ""
    return between.join(names[:most]) + more


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """Returns a text of about `most` characters at most, with the length of a longer one."""
    if len(text) <= most:
        return text
    return f"{text[: most - 40]}... ({len(text)} characters)"


def shown(value: object, most: int = LONGEST_VALUE) -> str:
    """Returns the `repr` of a value for a message, shortened."""
    try:
        return shortened(repr(value), most)
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        return "a number of thousands of digits"


def message_text(message: str, given: tuple[str, ...] = ()) -> str:
    """Returns the message of an error as it is printed: escaped, and of a sane length.

    Args:
        message: lines; its line ends stay.
        given: words of the command line; long values among them are shortened where the message
            repeats them.
    """
    for word in given:
        for value in sorted({word, *word.split("=", 1)}, key=len, reverse=True):
            if len(value) > _LONGEST_GIVEN:
                message = message.replace(value, shortened(value))
                message = message.replace(repr(value)[1:-1], shortened(repr(value)[1:-1]))
    lines = [shortened(line, _LONGEST_LINE) for line in printable(message, keep="\n\t").split("\n")]
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"... and {len(lines) - _MOST_LINES + 1} more lines"]
    return "\n".join(lines)
