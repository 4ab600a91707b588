"""Names are shown literally on a terminal."""

from __future__ import annotations

import ast
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import raymi
from raymi.evaluation.report import Difference
from raymi.formatting import markdown_table
from raymi.recipes import build_config
from raymi.selection.candidate import Candidate, Protocol
from raymi.selection.ranking import rank
from raymi.statistics import Number, PairedComparison
from raymi.terminal.console import Table, Terminal, progress_bar
from raymi.terminal.evaluation import print_differences
from raymi.terminal.print_line import print_line, print_lines, show_table
from raymi.terminal.progress import ProgressDisplay
from raymi.terminal.selection import print_ranking

NAMES = [
    "[/]",
    "[red]x[/]",
    "a\x1b[31mb",
    "\x1b]8;;http://x\x1b\\t",
    "x\u202ey",
    "two\nlines",
    ":+1:",
]
SHOWN = ["[/]", "[red]x[/]", "a\\x1b[31mb", "\\x1b]8;;http://x\\x1b\\t", "x\\u202ey", "two\\nlines"]
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def terminal(*, real: bool) -> Terminal:
    return Terminal(file=StringIO(), force_terminal=real, width=300)


def text_of(console: Console) -> str:
    """Returns the printed text without raymi's own colours."""
    assert isinstance(console.file, StringIO)
    text = _COLOUR.sub("", console.file.getvalue())
    text = text.replace("\r", "") if console.is_terminal else text  # of a bar
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    return text


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize(("name", "seen"), list(zip(NAMES, [*SHOWN, ":+1:"], strict=True)))
def test_names_are_literal_in_lines_and_tables(name: str, seen: str, real: bool) -> None:
    console = terminal(real=real)
    print_line(console, f"run {name}", "bold")
    console.print(name)
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    show_table(console, table)
    assert text_of(console).count(seen) == 5 if name != "two\nlines" else 4


@pytest.mark.parametrize("real", [True, False])
def test_names_are_literal_beside_bars(real: bool) -> None:
    console = terminal(real=real)
    with progress_bar(console) as bar:
        for name in NAMES:
            bar.add_task(f"attacking {name}")
    display = ProgressDisplay(console, build_config("quickstart"))
    with display:
        for name in NAMES:
            display.phase(name)
            display.event({"kind": "warning", "message": name})
            display.event({"kind": "stopping", "signal": name})
    text = text_of(console)
    assert all(seen in text for seen in SHOWN[:-1])


def test_names_are_literal_in_rankings_and_comparisons() -> None:
    protocol = Protocol("digits-test", "0" * 8, 100, "linf_8_255", of_training=False)
    candidates = [
        Candidate(
            name,
            f"m-{k}",
            None,
            protocol,
            {"clean": Number(0.9, 0.8, 0.95), "pgd-40": Number(0.1 * k, 0.0, 1.0)},
            doubts=name,
        )
        for k, name in enumerate(NAMES)
    ]
    console = terminal(real=True)
    print_ranking(console, rank(candidates, "pgd-40", (), allow_doubtful=True))
    pair = PairedComparison(1, 2, -0.01, 1.0)
    print_differences(console, [Difference(name, name, name, pair) for name in NAMES])
    text = text_of(console)
    assert all(seen in text for seen in SHOWN)


def test_line_breaks_of_a_text_are_kept() -> None:
    console = terminal(real=False)
    print_lines(console, markdown_table([("name", "a|b"), ("x", "y")]))
    assert text_of(console).splitlines()[:2] == ["| name | a\\|b |", "| --- | --- |"]


def test_all_output_uses_the_literal_console() -> None:
    """A plain console, table or bar of rich would take names for markup."""
    misuses = []
    for path in Path(raymi.__file__).parent.rglob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Console", "TextColumn"):
                misuses.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and node.module in ("rich.table", "rich.panel"):
                misuses.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.Attribute) and node.attr == "from_markup":
                misuses.append(f"{path}:{node.lineno}")
    assert misuses == []
