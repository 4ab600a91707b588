"""`python -m raymi.tune space=NAME [recipe=NAME] [key=value ...]`: searches settings."""

from __future__ import annotations

import sys

from raymi.commands.cli import run_command
from raymi.commands.tune.options import COMMAND


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
