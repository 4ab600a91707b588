"""`python -m raymi.evaluate model=A[,B] [suite=NAME] [key=value ...]`: robust accuracy of any
classifier, with the attacks shared among all workers.

model: a run of raymi (name or folder; which=last selects another of its models than the chosen
one), a registered model (models:/NAME@ALIAS), a file of weights (.safetensors, .pt, .pth, .ckpt;
give model.name=... if it is outside of a run, and which=ema, say, if it holds several models), or
module:function, which returns a torch module that maps images in [0, 1] to logits. Several models
with commas between them are compared on the same images, in pairs.

suite: the attacks to report, by default standard (clean, PGD-40, AutoAttack). Or attacks: names of
single attacks (pgd-N, pgd-NxR with R restarts, and @2eps after a name for another radius) and of
ensembles. Data and threat are by default those of the training run; data.name=...,
attack.norm=..., attack.eps=... change them. split=val attacks validation images, samples=N an even
selection.

surrogate: classifiers that make the adversarial images for the models (black-box transfer), with
single attacks, by default pgd-40.

Every outcome is saved immediately below results=FOLDER (./evaluations), in a folder for each
model, data, threat, seed, block and version of the code. After an interruption the same command
continues there and returns the same numbers, on any number of workers. keep=true saves the
adversarial images, too. checks=N is the approximate number of images that are attacked to look for
signs of false robustness (200; 0: only outputs and gradients are checked). --json FILE writes all
numbers.
"""

from __future__ import annotations

import sys
from functools import partial

from raymi.commands.cli import run_command
from raymi.commands.evaluate.command import evaluate_command


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(partial(evaluate_command, doc=__doc__), argv)


if __name__ == "__main__":
    sys.exit(main())
