"""Command `raymi.evaluate`: measures the robust accuracy of any classifier, with the attacks shared
among all workers.

model: a run of raymi (name or folder; which=last selects another of its models than the chosen
one), a registered model (models:/NAME@ALIAS), a file of weights (.safetensors, .pt, .pth, .ckpt;
give model.name=... if it is outside of a run, and which=ema, say, if it holds several models), or
module:function, which returns a torch module that maps images in [0, 1] to logits. Several models
with commas between them are compared on the same images, in pairs.

suite: the attacks to report, by default standard (clean, PGD-40, AutoAttack). fast takes a fraction
of AutoAttack's time, few-classes is for 2 or 3 classes, corruptions classifies the files of
corruptions=FOLDER. Or attacks: names of single attacks (pgd-N, pgd-NxR with R restarts,
module:function, and @2eps after a name for another radius) and of ensembles. Data and threat are by
default those of the training run; data.name=..., attack.norm=..., attack.eps=... change them.
split=val attacks validation images, samples=N an even selection.

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

from collections.abc import Sequence

from rich.console import Console

from raymi.attacks.catalogue import ATTACKS
from raymi.attacks.suites import CORRUPTIONS, ENSEMBLES, SUITES
from raymi.commands.cli import EXIT_FAILED, print_help, wants_help
from raymi.commands.evaluate.options import COMMAND, EvaluateOptions, takes
from raymi.commands.evaluate.plan import EvaluationPlan, plan_evaluation
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
    f"{COMMAND} model=A[,B] [suite=NAME | attacks=A,B] [surrogate=A,B] "
    "[samples=N] [split=test|val] [key=value ...] [--json FILE] [--help]"
)


def evaluate_command(words: list[str]) -> int:
    """Runs the command; returns its exit code."""
    console = Terminal()
    if wants_help(words):
        named = {
            "suites": {name: ", ".join(("clean", *parts)) for name, parts in SUITES.items()},
            "ensembles": {name: ", ".join(attacks) for name, attacks in ENSEMBLES.items()}
            | {CORRUPTIONS: "corrupted test images of corruptions=FOLDER, as in CIFAR-10-C"},
            "attacks": {name: f"in {' and '.join(a.norms)}" for name, a in ATTACKS.items()}
            | {
                "pgd-N, pgd-NxR": "PGD of N steps of eps / 4, with R restarts, in linf and l2",
                "module:function": "an attack of your own, see docs/extending.md",
            },
            "data sets (data.name)": DATASETS,
        }
        print_help(console, USAGE, __doc__, named, takes, EvaluateOptions)
        return 0
    plan = plan_evaluation(words, lambda line: print_line(console, line))
    try:
        with EvaluationDisplay(console) as display:
            reports, matrices = evaluate(plan, display)
    except (Stopped, KeyboardInterrupt) as error:
        stop = Stopped.of(error)
        return _ended(console, plan, f"stopped by {stop.name}", stop.exit_code)
    except StepFailed as failure:
        return _ended(console, plan, f"the evaluation failed: {failure}", EXIT_FAILED)
    _print_results(console, plan, reports, matrices)
    if plan.config.tracking.enabled:
        send_to_mlflow(console, plan, reports)
    return 0


def _ended(console: Console, plan: EvaluationPlan, why: str, code: int) -> int:
    outcomes = f"recorded outcomes are in {plan.request.results}"
    print_line(console, f"{why}; {outcomes}; to continue: {plan.request.command}")
    return code


def _print_results(
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
        numbers = {
            "models": [report.as_json() for report in reports],
            "differences": [pair.as_json() for pair in pairs],
            "transfer": [matrix.as_json() for matrix in matrices],
        }
        save_json(plan.request.json, numbers, "all outcomes are saved")
        print_line(console, f"all numbers  {plan.request.json}")


def send_to_mlflow(console: Console, plan: EvaluationPlan, reports: Sequence[Report]) -> None:
    """Logs reports to MLflow and prints a line for each."""
    for logged in track(plan, reports):
        if logged.run_id is None:
            text = (
                f"MLflow at {without_password(logged.uri)} did not take the evaluation of "
                f"{logged.name}: {logged.problem}; nothing is lost, deliver it with: "
                f"{plan.request.command}"
            )
        else:
            text = f"MLflow run of {logged.name}  {logged.run_id}  ({how_to_open(logged.uri)})"
        print_line(console, text)
        if logged.run_id is not None and logged.untracked is not None:
            print_line(console, _not_tracked(logged.untracked))


def _not_tracked(folder: RunFolder) -> str:
    """Returns the command that uploads the training run of an evaluation to MLflow."""
    words = f"resume={name_or_path(folder.path, home_folder() / 'runs')}"
    if not folder.read_config().tracking.enabled:
        words += " tracking.enabled=true"
    return (
        f"the training run {folder.name} is not in MLflow, so this evaluation has a run of its own "
        f"there: to have both in one, give python -m raymi.train {words}, then this command again"
    )
