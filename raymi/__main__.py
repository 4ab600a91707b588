"""Console script `raymi`: `raymi train ...` is `python -m raymi.train ...`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from raymi import __version__

COMMANDS = {
    "train": "trains, evaluates and tracks a classifier on Ray and MLflow",
    "standalone": "trains without Ray and MLflow, on one device or under torchrun",
    "evaluate": "measures robust accuracy with AutoAttack and other attacks",
    "tune": "searches settings for the highest robust accuracy on validation",
    "select": "ranks the models in MLflow and points an alias at the best one",
    "report": "writes pictures, tables and one page about runs",
    "compare": "compares variants of a recipe over seeds, in pairs",
    "probe": "estimates the mutual information of a finished classifier",
    "export": "writes a classifier that needs torch alone",
    "bench": "measures step cost, scaling and memory on this machine",
}
"""Commands, each a module of `raymi`, with their descriptions."""

_USAGE = "usage: raymi COMMAND [key=value ...] | COMMAND --help | --help | --version"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names.

    Args:
        argv: words of the command line; None: `sys.argv[1:]`.

    Returns:
        The exit code of the command; 2 for an unknown command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "-h"):
        return _print(_help())
    if words[0] == "--version":
        return _print(f"raymi {__version__}")
    name, *rest = words
    if name not in COMMANDS:
        from raymi.errors import did_you_mean  # imports libraries, which --help does not wait for

        print(f"error: no command {name!r}: {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    try:
        command = import_module(f"raymi.{name}")
    except KeyboardInterrupt:  # imports take seconds
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    code: int = command.main(rest)
    return code


def _print(text: str) -> int:
    """Prints a text; returns the exit code: 1 where the reader has closed the pipe."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join([_USAGE, "", *lines])


if __name__ == "__main__":
    sys.exit(main())
