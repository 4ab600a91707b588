"""Text for people: names without control characters, numbers, threats and tables."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from raymi.formatting import (
    markdown_table,
    mean_text,
    message_text,
    number_text,
    printable,
    radius_text,
    shortened,
    shown,
    threat_text,
    truncate_middle,
)
from raymi.statistics import Mean, Number

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
def test_control_characters_become_escapes(text: str) -> None:
    assert printable(text) == HOSTILE[text]
    assert printable(printable(text)) == HOSTILE[text]


def test_no_control_character_of_unicode_remains() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    left = printable(everything)
    kinds = {unicodedata.category(letter) for letter in left}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert not any(unicodedata.bidirectional(c) in ("LRE", "RLO", "LRI", "PDI") for c in left)
    left.encode()


def test_kept_characters_stay() -> None:
    assert printable("a\n\tb\x07", keep="\n\t") == "a\n\tb\\x07"


def test_long_values_are_shortened_and_show_their_length() -> None:
    assert shortened("x" * 200) == "x" * 200
    assert shortened("x" * 5000).endswith("... (5000 characters)")
    assert len(shown("x" * 5000)) < 250
    assert shown(10**5000) == "a number of thousands of digits"
    assert shown([1]) == "[1]"


def test_messages_have_no_long_words_and_at_most_60_lines() -> None:
    word = "name=" + "x" * 5000
    message = message_text(f"no run {word[5:]!r} here, given {word}", (word,))
    assert len(message) < 500
    assert "no run 'xxx" in message
    assert len(message_text("\n".join(["line"] * 5000)).splitlines()) == 60
    assert message_text("one\n  two") == "one\n  two"


def test_long_names_keep_their_ends() -> None:
    assert truncate_middle("abcdefghijkl", 12) == "abcdefghijkl"
    assert truncate_middle("abcdefghijklm", 12) == "abc...hijklm"


def test_cells_of_markdown_tables_are_escaped() -> None:
    rows = markdown_table([("name", "n"), ("a|b\nc", "1")]).splitlines()
    assert rows == ["| name | n |", "| --- | --- |", "| a\\|b\\nc | 1 |"]


def test_numbers_are_in_percent() -> None:
    assert number_text(Number(0.713, 0.664, 0.758)) == "71.3% (66.4-75.8)"
    assert number_text(Number(0.713, 0.664, 0.758), unit="") == "71.3 (66.4-75.8)"
    assert mean_text(Mean(0.713, 0.0042, 3)) == "71.3 ± 0.4%"
    assert mean_text(Mean(-0.00001, 0.01, 3), decimals=2, signed=True) == "+0.00 ± 1.00%"
    assert mean_text(Mean(0.5, None, 1)) == "50.0%"
    assert mean_text(None) == "-"


def test_threats_and_radii_are_written_as_in_papers() -> None:
    assert threat_text("linf", 8 / 255) == "L_inf eps 8/255"
    assert threat_text("l2", 0.5) == "L2 eps 0.5"
    radii = (0.0, 2 / 255, 0.75 * 8 / 255, 0.75 * 0.1, 0.2, 0.125, 1.0)
    texts = ["0", "2/255", "6/255", "0.075", "0.2", "0.125", "1"]
    assert [radius_text(eps) for eps in radii] == texts
