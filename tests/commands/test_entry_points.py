"""Entry points of commands are short and offer `main`."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

import raymi
from raymi.__main__ import COMMANDS

PACKAGE = Path(raymi.__file__).parent
MOST_LINES = 30


def lines_of_code(source: str) -> int:
    """Counts lines without docstrings, comments and blank lines."""
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {
        line
        for token in tokens
        if token.type not in ignored and token.type != tokenize.ENDMARKER
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_docstrings_comments_and_blank_lines_do_not_count():
    assert (
        lines_of_code('"""Text\nof two lines."""\n\nx = 1  # one\n# comment\ny = (\n    2\n)\n')
        == 4
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_an_entry_point_is_short(name):
    num_lines = lines_of_code((PACKAGE / f"{name}.py").read_text())
    assert num_lines <= MOST_LINES, f"{name}.py has {num_lines} lines of code"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_entry_point_has_a_main_function(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
