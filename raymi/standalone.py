"""`python -m raymi.standalone name=NAME [key=value ...]`: trains without Ray and MLflow."""

from __future__ import annotations

import sys

from raymi.commands.cli import run_command
from raymi.commands.standalone.options import COMMAND


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
