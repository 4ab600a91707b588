"""`python -m raymi.export model=RUN [which=NAME] [folder=FOLDER]`: a classifier that runs without
raymi, in the format of RobustBench.

model: a run of raymi (name or folder; which=last selects another of its models than the chosen
one), a file of weights in it, or a registered model (models:/NAME@ALIAS).

Writes weights.pt, a state dict that torch.load(..., weights_only=True) reads, and architecture.py,
which needs torch alone (and the module of a network of your own). It defines make_model() and
load_model(), which verifies the sha256 of weights.pt and returns a torch module of raw images in
[0, 1] to logits. folder: where to write, by default exports/NAME.
"""

from __future__ import annotations

import sys
from functools import partial

from raymi.commands.cli import run_command
from raymi.commands.export import export_command


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(partial(export_command, doc=__doc__), argv)


if __name__ == "__main__":
    sys.exit(main())
