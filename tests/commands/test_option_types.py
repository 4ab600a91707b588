"""Parsers of command options: values, and a line for each problem."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raymi.commands.option_types import names, new_file, new_folder, seed_list, whole, with_json
from raymi.fields import Count, Section
from raymi.overrides import parse_options


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [("7", None, 7), (None, None, None), (None, 5, 5), ("007", 1, 7)],
)
def test_whole_numbers(text, default, expected):
    problems: list[str] = []
    assert whole("num", text, default, problems) == expected
    assert problems == []


@pytest.mark.parametrize(("text", "least"), [("0", 1), ("-1", 0), ("1e3", 1), ("", 1), ("²", 1)])
def test_invalid_whole_number_is_reported_and_the_default_returned(text, least):
    problems: list[str] = []
    assert whole("num", text, 3, problems, least) == 3
    assert problems == [f"num: expected whole number >= {least}, got {text!r}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, ()), ("a", ("a",)), (" b , a,", ("b", "a")), ("c,c,a", ("c", "a"))],
)
def test_names_keep_their_order_without_duplicates(text, expected):
    problems: list[str] = []
    assert names("key", text, problems) == expected
    assert problems == (["key: c is given twice"] if text == "c,c,a" else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0..2", (0, 1, 2)), ("3,1", (3, 1)), ("5..5", (5,)), ("0..1, 7", (0, 1, 7)), ("9", (9,))],
)
def test_seeds_are_a_list_or_a_range_or_both(text, expected):
    problems: list[str] = []
    assert seed_list("seeds", text, problems) == expected
    assert problems == []


@pytest.mark.parametrize("text", ["", "x", "1..x", "-1", "0..", "..3", "0..1..2", "3..1", "1,1"])
def test_invalid_seeds_are_one_line(text):
    problems: list[str] = []
    seed_list("runs", text, problems)
    (line,) = problems
    assert line.startswith("runs: ")
    assert repr(text) in line


def test_new_file_and_folder_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problems: list[str] = []
    assert new_file("json", "x.json", problems) == tmp_path / "x.json"
    assert new_file("json", None, problems) is None
    assert new_folder("out", "a/b", tmp_path, problems) == tmp_path / "a" / "b"
    assert new_folder("out", None, tmp_path / "c", problems) == tmp_path / "c"
    assert new_file("json", "~", []) == Path.home()
    assert problems == []


def test_paths_that_cannot_be_written_are_a_line_each(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    problems: list[str] = []
    new_file("json", str(tmp_path / "no" / "x.json"), problems)
    new_file("json", str(tmp_path), problems)
    new_folder("out", str(tmp_path / "file" / "x"), tmp_path, problems)
    assert [line.rpartition(": ")[2] for line in problems] == [
        "make it, or give another file", "give a file in it", "give another one",
    ]  # fmt: skip
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    new_file("json", str(tmp_path / "x.json"), problems)
    new_folder("out", str(tmp_path / "x"), tmp_path, problems)
    assert all("no permission" in line for line in problems[3:])
    assert len(problems) == 5


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        (["a=1", "--json", "f", "b=2"], ["a=1", "json=f", "b=2"]),
        (["--json=f"], ["--json=f"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_json_and_its_file_become_one_word(words, joined):
    problems: list[str] = []
    assert with_json(words, problems) == joined
    assert problems == []


@pytest.mark.parametrize("words", [["--json"], ["--json", "a=1"]])
def test_json_without_a_file_is_a_line(words):
    problems: list[str] = []
    assert with_json(words, problems) == words[1:]
    assert problems == ["--json: expected a file after it: --json FILE"]


class Options(Section):
    """Options of a command."""

    rounds: Count = 5
    """Rounds of measurements."""
    threads: Count | None = None
    """Threads."""


def test_options_are_parsed_by_their_section():
    assert parse_options(Options, {}) == (Options(), [])
    given = {"rounds": "2", "threads": "none"}
    assert parse_options(Options, given) == (Options(rounds=2), [])


def test_invalid_options_are_a_line_each_and_have_their_defaults():
    options, problems = parse_options(Options, {"rounds": "0", "threads": "x"})
    assert options == Options()
    assert problems == [
        "rounds: expected whole number >= 1, got '0'",
        "threads: expected whole number >= 1 | none, got 'x'",
    ]
