"""`python -m raymi.tune space=NAME recipe=NAME [tune.trials=N] [key=value ...]`: searches settings
for the highest robust accuracy on validation.

space: the name of a file in tune_spaces/, or the path of your own. Other keys are settings of all
trials; keys that the space varies cannot be set. A trial is an ordinary run that never reads the
test set, in one process or, with scaling.workers=N, in several. seeds=0..9 repeats every trial and
compares trials in pairs.

PGD-40, then AutoAttack, evaluate the best trials on validation images. The winner alone is
evaluated on the test set, logged and registered in MLflow.

resume=SWEEP continues an interrupted sweep, its trials from their last checkpoints.
"""

import sys

from raymi.commands.cli import run_command
from raymi.commands.tune.run import tune


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(lambda words: tune(words, __doc__), argv)


if __name__ == "__main__":
    sys.exit(main())
