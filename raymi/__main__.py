"""Console script `raymi`: `raymi train ...` is `python -m raymi.train ...`."""

from __future__ import annotations

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
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"raymi {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        from raymi.errors import did_you_mean  # imports torch, which --help does not wait for

        print(f"error: no command {name!r}: {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    try:
        command = import_module(f"raymi.{name}")
    except KeyboardInterrupt:  # imports take seconds
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    code: int = command.main(rest)
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join([_USAGE, "", *lines])


if __name__ == "__main__":
    sys.exit(main())
