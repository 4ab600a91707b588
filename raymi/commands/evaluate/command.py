"""Runs `python -m raymi.evaluate` and prints its reports."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from raymi.commands.cli import EXIT_FAILED
from raymi.commands.evaluate.options import Request
from raymi.commands.evaluate.plan import EvaluationPlan, plan_evaluation
from raymi.commands.evaluate.run import evaluate, track
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


def evaluate_command(request: Request) -> int:
    """Runs the command; returns its exit code."""
    console = Terminal()
    plan = plan_evaluation(request, lambda line: print_line(console, line))
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
    outcomes = f"recorded outcomes are in {plan.request.options.results}"
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
    if plan.request.options.json_file is not None:
        numbers = {
            "models": [report.as_json() for report in reports],
            "differences": [pair.as_json() for pair in pairs],
            "transfer": [matrix.as_json() for matrix in matrices],
        }
        save_json(plan.request.options.json_file, numbers, "all outcomes are saved")
        print_line(console, f"all numbers  {plan.request.options.json_file}")


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
