"""`python -m raymi.bench [key=value ...]`: measures training steps on this machine."""

from __future__ import annotations

import sys

from raymi.commands.bench.options import COMMAND
from raymi.commands.cli import run_command


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
