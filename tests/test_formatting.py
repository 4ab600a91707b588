"""Names and values are shown literally, whole where they are short, and never control anything."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from raymi.formatting import message_text, printable, shortened, shown, table_cell

HOSTILE = {
    "[/]": "[/]",
    "[red]x[/red]": "[red]x[/red]",
    "a\x1b[31mb": "a\\x1b[31mb",
    "\x1b]8;;http://x\x1b\\t\x1b]8;;\x1b\\": "\\x1b]8;;http://x\\x1b\\t\\x1b]8;;\\x1b\\",
    "two\nlines\r": "two\\nlines\\r",
    "c1\x9b31m": "c1\\x9b31m",
    "rtl\u202eoff": "rtl\\u202eoff",
    "isolate\u2066\u2069": "isolate\\u2066\\u2069",
    "tag\U000e0041": "tag\\U000e0041",
    "half \udcff": "half \\udcff",
    ":smile: é 日本": ":smile: é 日本",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_shown_as_escapes(text: str) -> None:
    assert printable(text) == HOSTILE[text]
    assert printable(printable(text)) == HOSTILE[text]


def test_no_control_character_of_unicode_is_left() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    left = printable(everything)
    kinds = {unicodedata.category(letter) for letter in left}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert not any(unicodedata.bidirectional(c) in ("LRE", "RLO", "LRI", "PDI") for c in left)
    left.encode()


def test_line_ends_stay_where_they_are_meant() -> None:
    assert printable("a\n\tb\x07", keep="\n\t") == "a\n\tb\\x07"


def test_long_values_are_shortened_and_their_length_is_told() -> None:
    assert shortened("x" * 200) == "x" * 200
    assert shortened("x" * 5000).endswith("... (5000 characters)")
    assert len(shown("x" * 5000)) < 250
    assert shown(10**5000) == "a number of thousands of digits"
    assert shown([1]) == "[1]"


def test_a_message_repeats_no_long_word_and_has_no_more_lines_than_a_screen() -> None:
    word = "name=" + "x" * 5000
    message = message_text(f"no run {word[5:]!r} here, given {word}", (word,))
    assert len(message) < 500
    assert "no run 'xxx" in message
    assert len(message_text("\n".join(["line"] * 5000)).splitlines()) == 60
    assert message_text("one\n  two") == "one\n  two"


def test_a_cell_of_a_table_ends_where_it_should() -> None:
    assert table_cell("a|b\nc") == "a\\|b\\nc"
