"""`python -m raymi.evaluate model=A[,B] [suite=NAME] [key=value ...]`: robust accuracy of any
classifier, with the attacks shared among all workers.

model: a run of raymi (name or folder; which=last for another of its models than the chosen one), a
registered model (models:/NAME@ALIAS), a file of weights (.safetensors, .pt, .pth, .ckpt; give
model.name=... if no run is around it, and which=ema, say, if it holds several models), or
module:function, called for a torch module that maps images in [0, 1] to logits. Several with commas
between them are compared on the same images, in pairs.

suite: what is reported, by default standard (clean, PGD-40, AutoAttack). Or attacks: names of
single attacks (pgd-N, pgd-NxR with R restarts, and @2eps after a name for another radius), and of
ensembles. Data and threat are those that a run was trained for; data.name=..., attack.norm=...,
attack.eps=... say others. split=val attacks validation images, samples=N takes an even selection.

surrogate: classifiers on which samples are made that the models are then judged by (black-box
transfer), with single attacks, by default pgd-40.

Every outcome goes at once into a ledger below results=FOLDER (./evaluations), in a folder for each
model, data, threat, seed, block and version of the code. The command given again after any
interruption goes on from there, and ends with the same numbers, on any number of workers. keep=true
keeps the adversarial images as well. checks=N is about how many images are attacked to look for
signs of false robustness (200; 0: only outputs and gradients are looked at). --json FILE writes all
numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from raymi.attacks.catalogue import ATTACKS
from raymi.attacks.suites import ENSEMBLES, SUITES
from raymi.commands.cli import EXIT_FAILED, print_help, run_command, wants_help
from raymi.commands.evaluate.options import takes
from raymi.commands.evaluate.plan import EvaluationPlan, planned
from raymi.commands.evaluate.run import evaluate, track
from raymi.data import DATASETS
from raymi.evaluation.attack_task import StepFailed
from raymi.evaluation.report import Report, TransferMatrix, differences
from raymi.files import save_json
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import home_folder, name_or_path
from raymi.signals import Stopped
from raymi.terminal.console import Terminal
from raymi.terminal.evaluation import (
    EvaluationDisplay,
    print_differences,
    print_report,
    print_transfer,
)
from raymi.terminal.print_line import print_line
from raymi.tracking.store import how_to_open, without_password

USAGE = (
    "python -m raymi.evaluate model=A[,B] [suite=NAME | attacks=A,B] [surrogate=A,B] "
    "[samples=N] [split=test|val] [key=value ...] [--json FILE] [--help]"
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_evaluate, argv)


def _evaluate(words: list[str]) -> int:
    console = Terminal()
    if wants_help(words):
        return _help(console)
    plan = planned(words, lambda line: print_line(console, line))
    try:
        with EvaluationDisplay(console) as display:
            reports, matrices = evaluate(plan, display)
    except (Stopped, KeyboardInterrupt) as error:
        stop = Stopped.of(error)
        return _ended(console, plan, f"stopped by {stop.name}", stop.exit_code)
    except StepFailed as failure:
        return _ended(console, plan, f"the evaluation failed: {failure}", EXIT_FAILED)
    _show(console, plan, reports, matrices)
    return 0


def _ended(console: Console, plan: EvaluationPlan, why: str, code: int) -> int:
    kept = f"what was computed is kept in {plan.request.results}"
    text = f"{why}; {kept}; to continue: {plan.request.command}"
    print_line(console, text)
    return code


def _show(
    console: Console,
    plan: EvaluationPlan,
    reports: Sequence[Report],
    matrices: Sequence[TransferMatrix],
) -> None:
    pairs = list(differences(reports))
    for report in reports:
        print_report(console, report)
    for matrix in matrices:
        print_transfer(console, matrix)
    if pairs:
        print_differences(console, pairs)
    for report in reports:
        print_line(console, f"outcomes of {report.name}  {report.folder}")
    if plan.request.json is not None:
        told = {
            "models": [report.as_json() for report in reports],
            "differences": [pair.as_json() for pair in pairs],
            "transfer": [matrix.as_json() for matrix in matrices],
        }
        save_json(plan.request.json, told, "all outcomes are kept")
        print_line(console, f"all numbers  {plan.request.json}")
    if plan.config.tracking.enabled:
        send_to_mlflow(console, plan, reports)


def send_to_mlflow(console: Console, plan: EvaluationPlan, reports: Sequence[Report]) -> None:
    """Logs reports to MLflow and prints a line for each."""
    for told in track(plan, reports):
        if told.run_id is None:
            text = (
                f"MLflow at {without_password(told.uri)} did not take the evaluation of "
                f"{told.name}: {told.problem}; nothing is lost, deliver it with: "
                f"{plan.request.command}"
            )
        else:
            text = f"MLflow run of {told.name}  {told.run_id}  ({how_to_open(told.uri)})"
        print_line(console, text)
        if told.run_id is not None and told.untracked is not None:
            print_line(console, _not_tracked(told.untracked))


def _not_tracked(folder: RunFolder) -> str:
    """Returns the command that brings the training run of an evaluation into MLflow."""
    words = f"resume={name_or_path(folder.path, home_folder() / 'runs')}"
    if not folder.read_config().tracking.enabled:
        words += " tracking.enabled=true"
    return (
        f"the training run {folder.name} is not in MLflow, so this evaluation has a run of its own "
        f"there: to have both in one, give python -m raymi.train {words}, then this command again"
    )


def _help(console: Console) -> int:
    named = {
        "suites": {name: ", ".join(("clean", *reported)) for name, reported in SUITES.items()},
        "ensembles": {name: ", ".join(attacks) for name, attacks in ENSEMBLES.items()},
        "attacks": {name: f"in {' and '.join(attack.norms)}" for name, attack in ATTACKS.items()}
        | {"pgd-N, pgd-NxR": "PGD of N steps of eps / 4, with R restarts, in linf and l2"},
        "data sets (data.name)": DATASETS,
    }
    print_help(console, USAGE, __doc__, named, takes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
