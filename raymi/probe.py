"""`python -m raymi.probe run=RUN [key=value ...]`: mutual information in a finished classifier's
outputs.

Trains new estimators with a fixed budget on the frozen classifier of a run, also of one that
trained without MI, and prints natural and adversarial MI of its natural and adversarial outputs on
the validation split: the numbers of the paper's Fig. 4.

`run` is a run's name or folder, `model` one of its models (best; last; best-averaged;
last-averaged). Other keys: those of probe, attack and validation.
"""

from __future__ import annotations

import sys
from functools import partial

from raymi.commands.cli import run_command
from raymi.commands.probe import probe_command


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(partial(probe_command, doc=__doc__), argv)


if __name__ == "__main__":
    sys.exit(main())
