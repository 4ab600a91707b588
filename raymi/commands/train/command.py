"""Runs `python -m raymi.train` and prints its results."""

from __future__ import annotations

import shlex

from rich.console import Console

from raymi.commands.train.options import TrainRequest
from raymi.commands.train.run import TrainResult, train
from raymi.config import Config
from raymi.overrides import resolved_lines
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_line
from raymi.terminal.progress import ProgressDisplay
from raymi.terminal.summary import print_summary
from raymi.tracking.store import how_to_open


def train_command(request: TrainRequest) -> int:
    """Runs the command; returns its exit code."""
    console = Terminal()
    if request.dry_run:
        for word in (f"recipe={request.recipe}", *resolved_lines(request.config)):
            print_line(console, shlex.quote(word))
        return 0
    with ProgressDisplay(console, request.config) as display:
        result = train(request, [display], display.print_line)
    if result.chosen is not None:
        _print_result(console, request.config, result, result.chosen)
    return result.exit_code


def _print_result(console: Console, config: Config, result: TrainResult, chosen: str) -> None:
    folder = result.folder
    places = {"run": str(folder.path), "weights": str(folder.weights(chosen))}
    if result.tracking_uri is not None:
        places["model"] = f"{result.model_uri} (mlflow.pytorch.load_model)"
        places["MLflow run"] = str(result.mlflow_run)
        places["MLflow UI"] = how_to_open(result.tracking_uri)
    print_summary(console, config, folder, result.evaluations, places)
