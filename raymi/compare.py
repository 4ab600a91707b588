"""`python -m raymi.compare [key=value ...]`: compares variants of a recipe over seeds, in pairs."""

from __future__ import annotations

import sys

from raymi.commands.cli import run_command
from raymi.commands.compare.options import COMMAND


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
