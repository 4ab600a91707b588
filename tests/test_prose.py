"""Plain English in docstrings, comments, documentation and names of tests."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("raymi", "studies", "tests", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cluster").rglob("*.*")]

FIRST_WORDS = re.compile(
    r"(What|Those|That|Of|Where|Which|How|Why|Whether|Whoever|Whatever|Somebody|Nobody|Anybody|One|"
    r"As|In|By|From|To|For|With|On)\b"
)
"""Words with which no docstring begins: a verb or a noun phrase says what the thing is."""

IDIOMS = re.compile(
    r"\b(whoever|whatever|whichever|nobody|somebody|anybody|so many|so much|as far as|by now|"
    r"for ever|goes? on|(?:is|are|was|were) told|tells?|told|comes? to|came to|anew|in words)\b",
    re.IGNORECASE,
)
"""Idioms with a plain word: log, report, continue, equal, again."""

IN_NAMES = re.compile(
    r"(?:^|_)(whoever|whatever|nobody|somebody|so_many|so_much|as_far_as|by_now|for_ever|goes?_on|"
    r"tells?|told|comes?_to|anew|are_those_of|is_that_of)(?:_|$)"
)


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yields line and text of each docstring, also of attributes."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, statement in zip([None, *body], body, strict=False):
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
                and (
                    isinstance(before, ast.Assign | ast.AnnAssign)
                    or (before is None and not isinstance(node, ast.If | ast.For | ast.With))
                )
            ):
                yield statement.lineno, statement.value.value.strip()


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yields line and text of each comment."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def odd_lines(path: Path) -> list[str]:
    source = path.read_text()
    found = []
    for line, text in docstrings(source):
        if FIRST_WORDS.match(text):
            found.append(f"{line}: {text.splitlines()[0]}")
        found += [f"{line}: {text[m.start() - 20 : m.end() + 20]}" for m in IDIOMS.finditer(text)]
    found += [f"{line}: {text}" for line, text in comments(source) if IDIOMS.search(text)]
    return found


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ('"""What a run needs."""', 1),
        ('def f():\n    """Tells whoever asks."""', 2),
        ('x = 1\n"""Of a picture, in inches."""', 1),
        ("x = 1  # so many rows", 1),
        ('"""Width of a picture, in inches."""\nx = "What is told"  # rows', 0),
    ],
)
def test_the_check_finds_odd_text(source, number, tmp_path):
    (tmp_path / "module.py").write_text(source)
    assert len(odd_lines(tmp_path / "module.py")) == number


def test_docstrings_and_comments_are_plain():
    odd = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        if path != Path(__file__)
        for line in odd_lines(path)
    ]
    assert not odd, "\n".join(odd)


def test_documentation_is_plain():
    odd = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in TEXTS
        if path.suffix in (".md", ".yaml", ".yml", ".sh")
        for line in re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL).splitlines()
        if IDIOMS.search(line)
    ]
    assert not odd, "\n".join(odd)


def test_names_of_tests_are_plain():
    names = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in SOURCES
        if path.name.startswith("test_")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    odd = [name for name in names if IN_NAMES.search(name.partition(": ")[2])]
    assert len(names) > 1000
    assert not odd, "\n".join(odd)
