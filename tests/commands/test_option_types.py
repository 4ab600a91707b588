"""Types of command options: values, and a line for each problem."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import pytest

from raymi.commands.option_types import Names, NewFile, NewFolder, Radii, Seeds, in_home, known
from raymi.fields import NEEDED, Count, Section
from raymi.overrides import default_text, leaves, read_options, typed_as


class Options(Section):
    """Options of a command."""

    rounds: Count = 5
    """Rounds of measurements."""
    threads: Count | None = None
    """Threads."""
    parts: Annotated[Names, known("part", ["a", "b", "c"])] = ()
    """Parts to measure."""
    seeds: Seeds = (0,)
    """Seeds."""
    eps: Radii = ()
    """Radii."""
    file: NewFile | None = None
    """File for numbers."""
    out: NewFolder = in_home("results")
    """Folder of results."""
    fast: bool = False
    """Skip slow parts."""


class Needing(Section):
    """Options of a command that needs one."""

    run: Annotated[str, NEEDED] = ""
    """Name of a run."""
    rounds: Count = 5
    """Rounds."""


def wrong(**given: str) -> list[str]:
    """Returns the problems of options, all of which have their defaults instead."""
    options, problems = read_options(Options, given)
    assert options == Options()
    return problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none", ()), ("a", ("a",)), (" b , a,", ("b", "a")), ("c,b,a", ("c", "b", "a"))],
)
def test_names_keep_their_order(text, expected):
    assert read_options(Options, {"parts": text}) == (Options(parts=expected), [])


def test_names_are_known_and_given_once():
    assert wrong(parts=",") == ["parts: expected names with commas between them, got ','"]
    assert wrong(parts="c,c,a") == ["parts: c is given twice"]
    assert wrong(parts="a,d") == ["parts: unknown part 'd': there are a, b, c"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0..2", (0, 1, 2)), ("3,1", (3, 1)), ("5..5", (5,)), ("0..1, 7", (0, 1, 7)), ("9", (9,))],
)
def test_seeds_are_a_list_or_a_range_or_both(text, expected):
    assert read_options(Options, {"seeds": text}) == (Options(seeds=expected), [])


@pytest.mark.parametrize(
    "text", ["x", "1..x", "-1", "0..", "..3", "0..1..2", "3..1", "1,1", "0..99999", "9" * 5000]
)
def test_invalid_seeds_are_one_line(text):
    (line,) = wrong(seeds=text)
    assert line.startswith("seeds: ")
    assert len(line) < 400


def test_radii_are_written_as_papers_do():
    assert read_options(Options, {"eps": "8/255,0.1"})[0].eps == (8 / 255, 0.1)
    assert wrong(eps="x,-1,1") == [
        "eps: expected radii in pixel units such as 4/255,8/255, got 'x'",
        "eps: expected radii in pixel units such as 4/255,8/255, got '-1'",
    ]


def test_new_file_and_folder_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, problems = read_options(Options, {"file": "x.json", "out": "a/b"})
    assert (options.file, options.out, problems) == (tmp_path / "x.json", tmp_path / "a/b", [])
    assert Options().out == tmp_path / "results"
    assert default_text(dict(leaves(Options))["out"]) == "results"
    assert read_options(Options, {"out": "~"})[0].out == Path.home()


def test_paths_that_cannot_be_written_are_a_line_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    assert wrong(file="no/x.json") == [
        f"file: no folder {tmp_path}/no: make it, or give another file"
    ]
    assert wrong(file=".") == [f"file: {tmp_path} is a folder: give a file in it"]
    assert wrong(out="taken/x") == [f"out: {tmp_path}/taken is not a folder: give another one"]
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path)
    (tmp_path / "fixed").mkdir()
    lines = wrong(file="fixed/x.json", out="fixed/x")
    assert ["no permission to write into" in line for line in lines] == [True, True]


def test_options_are_parsed_by_their_section():
    assert read_options(Options, {}) == (Options(), [])
    given = {"rounds": "2", "threads": "none", "fast": "true"}
    assert read_options(Options, given) == (Options(rounds=2, fast=True), [])


def test_invalid_options_are_a_line_each_and_have_their_defaults():
    assert wrong(rounds="0", threads="x", fast="maybe") == [
        "rounds: expected whole number >= 1, got '0'",
        "threads: expected whole number >= 1 | none, got 'x'",
        "fast: expected true | false, got 'maybe'",
    ]


def test_an_option_without_which_a_command_cannot_run_is_needed():
    options, problems = read_options(Needing, {"rounds": "x"})
    assert options == Needing()
    assert problems == [
        "run=NAME is needed: name of a run",
        "rounds: expected whole number >= 1, got 'x'",
    ]


def test_a_usage_line_shows_the_kind_of_value():
    texts = [typed_as(key, field) for key, field in leaves(Options)]
    assert texts == [
        "rounds=N", "threads=N", "parts=A,B", "seeds=0..9", "eps=A,B", "file=FILE", "out=FOLDER",
        "--fast",
    ]  # fmt: skip
