"""Lines and tables in logs and on terminals."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from raymi.terminal.print_line import print_line, show_table

LONG = "a-run-with-a-long-name-" * 5


@pytest.mark.parametrize("terminal", [True, False])
def test_line_is_literal_and_unbroken(terminal):
    console = Console(file=StringIO(), force_terminal=terminal, width=40, color_system=None)
    print_line(console, f"[bold]{LONG}")
    assert console.file.getvalue() == f"[bold]{LONG}\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_table_fits_a_terminal_and_is_unbroken_in_a_log(terminal):
    console = Console(file=StringIO(), force_terminal=terminal, width=40, color_system=None)
    table = Table()
    table.add_column("model", overflow="fold")
    table.add_row(LONG)
    show_table(console, table)
    lines = console.file.getvalue().splitlines()
    assert (max(map(len, lines)) <= 40) == terminal
    assert any(LONG in line for line in lines) != terminal
