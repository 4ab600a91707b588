"""Text for people: values, numbers, threats and tables; control characters are escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raymi.statistics import Mean, Number

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
    r"""Returns a text in which terminals and browsers see letters only.

    Control characters, marks of writing direction and invisible characters become escapes such as
    `\x1b`; names from files, folders and servers may have any of them.

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


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of text as a Markdown table, without a line end after it.

    Args:
        rows: cells of each row; the first row is the header.
    """
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(map(_table_cell, line))} |" for line in lines)


def _table_cell(text: str) -> str:
    return printable(text).replace("|", "\\|")


def as_typed(value: Any) -> str:
    """Returns a setting as a user would type it: exact, and eps as papers write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        pixels = round(value * 255)
        if 0 < value < 1 and value == pixels / 255 and len(repr(value)) > 6:
            return f"{pixels}/255"
        return repr(value).removesuffix(".0")
    if isinstance(value, (tuple, list)):
        return ",".join(map(as_typed, value)) or "()"
    return str(value)


def norm_text(norm: str) -> str:
    """Returns a norm as papers write it, such as `L_inf`."""
    return {"linf": "L_inf", "l2": "L2"}.get(norm, norm)


def threat_text(norm: str, eps: float) -> str:
    """Returns a threat such as `L_inf eps 8/255`.

    Args:
        norm: "linf" or "l2".
        eps: radius in [0, 1] pixel units.
    """
    return f"{norm_text(norm)} eps {as_typed(eps)}"


def radius_text(eps: float) -> str:
    """Returns a radius in pixel units for an axis: `8/255` for whole 255ths, otherwise `0.15`."""
    pixels = round(255 * eps)
    if abs(255 * eps - pixels) < 1e-6 and len(f"{eps:.6g}") > 6:
        return f"{pixels}/255"
    return f"{eps:.3g}"


def percent_text(fraction: float) -> str:
    """Returns a fraction in percent, such as `71.3%`."""
    return f"{100 * fraction:.1f}%"


def interval_text(low: float, high: float) -> str:
    """Returns an interval of fractions in percent, without the sign, such as `66.4-75.8`."""
    return f"{100 * low:.1f}-{100 * high:.1f}"


def number_text(number: Number, unit: str = "%") -> str:
    """Returns an accuracy with its interval in percent, such as `71.3% (66.4-75.8)`."""
    return f"{100 * number.accuracy:.1f}{unit} ({interval_text(number.low, number.high)})"


def mean_text(
    mean: Mean | None, *, decimals: int = 1, signed: bool = False, unit: str = "%"
) -> str:
    """Returns a mean of fractions and its standard error in percent, such as `71.3 ± 0.4%`.

    Args:
        mean: None gives "-"; the error of a single value is left out.
        decimals: number of digits after the point.
        signed: write a plus before positive means.
        unit: sign at the end.
    """
    if mean is None:
        return "-"
    percent = round(100 * mean.mean, decimals) + 0.0  # no -0.00
    error = "" if mean.error is None else f" ± {100 * mean.error:.{decimals}f}"
    return f"{percent:{'+' if signed else ''}.{decimals}f}{error}{unit}"


def listed(names: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """Returns the first names of a list for a message, and the number of the others.

    Args:
        names: any number of texts.
        most: number of texts that are listed.
        between: separator.
    """
    more = f" (and {len(names) - most} more)" if len(names) > most else ""
    return between.join(names[:most]) + more


def plain_name(text: str) -> str:
    """Returns a text as a name of files: at most 80 letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[-80:].strip("-._") or "model"


def truncate_middle(text: str, most: int) -> str:
    """Returns a name in at most `most` letters, with both ends, where names often differ."""
    text = printable(text)
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - end - 3]}...{text[-end:]}"


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
