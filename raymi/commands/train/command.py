"""Command `raymi.train`: trains, evaluates and tracks a classifier.

`resume=RUN` continues a run from its last checkpoint, `--dry-run` prints the resolved
configuration, `--help` lists every key.
"""

from __future__ import annotations

import shlex

from rich.console import Console

from raymi.commands.cli import print_help, wants_help
from raymi.commands.train.options import COMMAND, requested
from raymi.commands.train.run import TrainResult, train
from raymi.config import Config
from raymi.data import DATASETS
from raymi.models import MODELS
from raymi.overrides import resolved_lines
from raymi.recipes import BASE_RECIPES, VARIANTS
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_line
from raymi.terminal.progress import ProgressDisplay
from raymi.terminal.summary import print_summary
from raymi.tracking.store import how_to_open

USAGE = f"{COMMAND} [recipe=NAME | resume=RUN] [key=value ...] [--dry-run] [--help]"


def train_command(words: list[str]) -> int:
    """Runs the command; returns its exit code."""
    console = Terminal()
    if wants_help(words):
        _print_help(console)
        return 0
    request = requested(words)
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


def _print_help(console: Console) -> None:
    named = {
        "recipes": {name: recipe.description for name, recipe in BASE_RECIPES.items()},
        "variants, added to a recipe's name (recipe=quickstart-at)": {
            name: variant.description for name, variant in VARIANTS.items()
        },
        "data sets (data.name)": DATASETS,
        "models (model.name)": {
            **MODELS,
            "torchvision:NAME": "network of torchvision, such as torchvision:resnet50",
            "timm:NAME": "network of timm, if installed, such as timm:vit_small_patch16_224",
            "module:function": "your own (docs/extending.md)",
        },
    }
    print_help(console, USAGE, __doc__, named)
