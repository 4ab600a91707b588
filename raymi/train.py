"""`python -m raymi.train [recipe=NAME] [key=value ...]`: trains, evaluates and tracks a classifier.

`resume=RUN` continues a run from its last checkpoint, `--dry-run` prints the resolved
configuration, `--help` lists every key.
"""

from __future__ import annotations

import signal
import sys
import uuid
from typing import Any

from rich.console import Console

from raymi.command import EXIT_FAILED, print_help, run_command
from raymi.config import Config
from raymi.engine.run_folder import RunFolder
from raymi.errors import UserError
from raymi.overrides import (
    Words,
    flatten,
    leaves,
    overlay,
    resolved_lines,
    split_words,
    validate,
)
from raymi.recipes import RECIPES, build_config

USAGE = "python -m raymi.train [recipe=NAME | resume=RUN] [key=value ...] [--dry-run] [--help]"
CHANGEABLE = (
    "scaling.",
    "checkpoint.",
    "tracking.log_every",
    "tracking.enabled",
    "evaluation.block",
)
"""What may change when a run is continued: everything else decides its results."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_train, argv)


def _train(words: list[str]) -> int:
    console = Console(highlight=False)
    flags = {word for word in words if word in ("--help", "-h", "--dry-run")}
    if flags & {"--help", "-h"}:
        return _help(console)
    parsed = split_words([w for w in words if w not in flags], ("recipe", "resume"))
    if "resume" in parsed.own:
        recipe, config, folder = _continued(parsed)
    else:
        recipe = parsed.own.get("recipe", "quickstart")
        config, folder = build_config(recipe, parsed.settings, parsed.problems), None
    if "--dry-run" in flags:
        for line in resolved_lines(config):
            console.print(line, soft_wrap=True)
        return 0
    return _run(console, config, recipe, folder, words)


def _run(
    console: Console, config: Config, recipe: str, folder: RunFolder | None, words: list[str]
) -> int:
    # What takes seconds to import comes after the words were understood.
    from raymi.orchestration.ray_session import check_this_machine

    check_this_machine(config.scaling)
    from raymi.orchestration.checks import check_inputs

    check_inputs(config)
    from raymi.display.progress import ProgressDisplay
    from raymi.orchestration.launch import RunFailed, Stopped, launch
    from raymi.orchestration.names import home_folder, new_run_folder
    from raymi.tracking.provenance import provenance
    from raymi.tracking.tracker import Tracker

    if folder is None:
        folder = new_run_folder(config, recipe)
        command = " ".join(["python -m raymi.train", *words])
        folder.write_about({"id": uuid.uuid4().hex, "recipe": recipe, **provenance(command)})
    folder.write_config(config)
    tracker = None
    if config.tracking.enabled:
        tracker = Tracker(config, folder, folder.read_about(), home_folder())
        tracker.start()
    results = _Results(folder)
    again = f"python -m raymi.train resume={folder.name if config.out is None else folder.path}"
    status, code = "FAILED", EXIT_FAILED
    with ProgressDisplay(console, config) as display:
        display.say(f"run {folder.name} in {folder.path}")
        try:
            launch(config, folder, [display, results])
            status, code = "FINISHED", 0
        except Stopped as stop:
            status, code = "KILLED", 128 + stop.signum
            display.say(f"stopped by {signal.Signals(stop.signum).name}; to continue: {again}")
        except RunFailed as failure:
            display.say(f"[bold red]the run failed:[/] {failure}\nto continue: {again}")
        finally:
            delivered = True
            if tracker is not None:
                display.phase("bringing the run and its models into MLflow")
                delivered = tracker.close(status, timeout=120 if status == "FINISHED" else 10)
    if tracker is not None and not delivered:
        console.print(
            f"MLflow at {tracker.uri} did not take everything ({tracker.problem or 'too slow'}); "
            f"nothing is lost, deliver it with: {again}",
            soft_wrap=True,
        )
    if status == "FINISHED":
        _summarise(console, config, folder, results, tracker)
    return code


def _summarise(
    console: Console, config: Config, folder: RunFolder, results: _Results, tracker: Any
) -> None:
    from raymi.display.summary import print_summary
    from raymi.tracking.store import how_to_open

    places = {"run": str(folder.path), "weights": str(folder.weights("best"))}
    if tracker is not None and tracker.models:
        places["model"] = f"{tracker.models['best']} (mlflow.pytorch.load_model)"
        places["MLflow run"] = str(tracker.run_id)
        places["MLflow UI"] = how_to_open(tracker.uri)
    print_summary(console, config, folder, results.evaluations, places)


class _Results:
    """Keeps the evaluations of a run, also those from before it was continued."""

    def __init__(self, folder: RunFolder) -> None:
        from raymi.engine.journal import JournalReader

        self.evaluations: dict[str, dict[str, Any]] = {}
        for event in JournalReader(folder.journal).new_events():
            self.event(event)

    def event(self, event: dict[str, Any]) -> None:
        if event["kind"] == "evaluation":
            self.evaluations[event["which"]] = event


def _continued(parsed: Words) -> tuple[str, Config, RunFolder]:
    """The configuration of an earlier run with what may be changed laid over it."""
    from raymi.orchestration.names import find_run

    if "recipe" in parsed.own:
        raise UserError("give either recipe or resume: a continued run keeps its recipe")
    settings = flatten(parsed.settings)
    out = parsed.settings.pop("out", None)
    settings.pop("out", None)
    from pathlib import Path

    folder = find_run(parsed.own["resume"], Path(out) if out else None)
    fixed = [key for key in settings if not key.startswith(CHANGEABLE)]
    allowed = [key for key, _ in leaves() if key.startswith(CHANGEABLE)]
    problems = [
        f"{key} cannot change when a run is continued: start a new run, or change only "
        f"{', '.join(allowed)}"
        for key in fixed
    ]
    earlier = folder.read_config()
    config = validate(overlay(earlier.model_dump(), parsed.settings), [*parsed.problems, *problems])
    return folder.read_about().get("recipe", ""), config, folder


def _help(console: Console) -> int:
    from raymi.data import DATASETS
    from raymi.models import MODELS

    recipes = {name: recipe.description for name, recipe in RECIPES.items()}
    named = {
        "recipes": recipes,
        "data sets (data.name)": DATASETS,
        "models (model.name)": {**MODELS, "module:function": "your own"},
    }
    print_help(console, USAGE, __doc__ or "", named)
    return 0


if __name__ == "__main__":
    sys.exit(main())
