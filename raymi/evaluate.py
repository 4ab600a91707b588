"""`python -m raymi.evaluate model=A[,B] [key=value ...]`: measures robust accuracy."""

from __future__ import annotations

import sys

from raymi.commands.cli import run_command
from raymi.commands.evaluate.command import evaluate_command


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(evaluate_command, argv)


if __name__ == "__main__":
    sys.exit(main())
