"""`python -m raymi.train [recipe=NAME] [key=value ...]`: trains, evaluates and tracks a classifier.

`resume=RUN` continues a run from its last checkpoint, `--dry-run` prints the resolved
configuration, `--help` lists every key.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from raymi.commands.cli import EXIT_FAILED, EXIT_TIME_LIMIT, print_help, run_command, wants_help
from raymi.commands.preflight import input_problems
from raymi.config import Config
from raymi.data import DATASETS
from raymi.errors import StorageError, UserError
from raymi.local_paths import local_path
from raymi.models import MODELS
from raymi.overrides import Words, examine, flatten, leaves, overlay, resolved_lines, split_words
from raymi.ray_backend.train_driver import (
    NotStarted,
    RunCallback,
    RunFailed,
    TimeLimitReached,
    launch,
)
from raymi.recipes import BASE_RECIPES, RECIPES, VARIANTS, on_recipe
from raymi.runs.record import chosen_model, missing_evaluations, read_record
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import (
    called,
    find_run,
    home_folder,
    new_run_folder,
    with_found_runs,
)
from raymi.signals import Stopped, ended_by_sigterm, nothing
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_line
from raymi.terminal.progress import ProgressDisplay
from raymi.terminal.summary import print_summary
from raymi.tracking.delivery import FAIL_SECONDS, FINISH_SECONDS
from raymi.tracking.provenance import describe_run
from raymi.tracking.store import how_to_open
from raymi.tracking.tracker import Tracker

COMMAND = "python -m raymi.train"
USAGE = f"{COMMAND} [recipe=NAME | resume=RUN] [key=value ...] [--dry-run] [--help]"
LOCK_SECONDS = 3.0
"""Seconds to wait for another command that looks whether the run is still going on."""
FIXED_SCALING = ("scaling.precision", "scaling.sync_batchnorm", "scaling.micro_batch")
CHANGEABLE = tuple(
    key
    for key, _ in leaves()
    if (key.startswith(("scaling.", "checkpoint.", "limit.")) and key not in FIXED_SCALING)
    or key in ("data.root", "data.download", "evaluation.block", "mi.score_memory")
    or key in ("tracking.enabled", "tracking.log_every", "tracking.machine_every")
)
"""What may change when a run is continued: everything else decides its results."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_train, argv)


def _train(words: list[str]) -> int:
    console = Terminal()
    flags = {word for word in words if word in ("--help", "-h", "--dry-run")}
    if wants_help(words):
        return _help(console)
    parsed = split_words([w for w in words if w not in flags], {"recipe": RECIPES, "resume": ()})
    folder = None
    if "resume" in parsed.own:
        recipe, config, problems, folder = _continued(parsed)
    else:
        recipe = parsed.own.get("recipe", "quickstart")
        tree, problems = on_recipe(recipe, parsed.settings)
        config, wrong = examine(tree)
        config, missing = with_found_runs(config)
        problems = [*parsed.problems, *problems, *wrong, *missing]
    if "--dry-run" not in flags:
        problems += input_problems(config, new_run=folder is None)
    if problems:
        raise UserError("\n".join(problems))
    if "--dry-run" in flags:
        for word in (f"recipe={recipe}", *resolved_lines(config)):
            print_line(console, shlex.quote(word))
        return 0
    return _run(console, config, recipe, folder, words)


def _run(
    console: Console, config: Config, recipe: str, folder: RunFolder | None, words: list[str]
) -> int:
    is_new = folder is None
    if folder is None:
        folder = new_run_folder(config, recipe)
    command = f"{COMMAND} {shlex.join(words)}".strip()
    try:
        with folder.lock(wait=LOCK_SECONDS):
            describe_run(folder, recipe, command)
            return _follow(console, config, folder)
    except NotStarted:
        if is_new:  # its name stays free
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _follow(console: Console, config: Config, folder: RunFolder) -> int:
    """Runs a run to its end while showing and tracking it; returns the exit code."""
    folder.write_config(config)
    again = _how_to_continue(folder)
    results = _Results(folder)
    status, code = "FAILED", EXIT_FAILED
    with ProgressDisplay(console, config) as display:
        display.print_line(f"run {folder.name} in {folder.path}")
        warnings = _Warnings(folder, display.print_line)
        tracker = None
        if config.tracking.enabled:
            tracker = Tracker(
                config, folder, folder.read_about(), home_folder(), display.print_line
            )
        track = tracker.start if tracker is not None else lambda: None
        try:
            on_signal = nothing if tracker is None else tracker.interrupt
            if results.finished:
                track()
            else:
                callbacks: list[RunCallback] = [display, results, warnings]
                with ended_by_sigterm(on_signal):
                    launch(
                        config,
                        folder,
                        callbacks,
                        on_signal=on_signal,
                        on_ray=track,
                        print_line=display.print_line,
                    )
            status, code = "FINISHED", 0
        except Stopped as stop:
            status, code = "KILLED", 128 + stop.signum
            display.print_line(
                f"stopped by {signal.Signals(stop.signum).name}; to continue: {again}"
            )
        except TimeLimitReached:
            status, code = "KILLED", EXIT_TIME_LIMIT
            display.print_line(
                f"stopped at its limit of {config.limit.hours:g} hours; to continue: {again}"
            )
        except KeyboardInterrupt:  # before `launch` listened to signals, or after
            status, code = "KILLED", 128 + signal.SIGINT
            display.print_line(f"stopped by SIGINT; to continue: {again}")
        except (RunFailed, StorageError) as failure:
            display.print_line(f"the run failed: {failure}", style="red")
            display.print_line(f"to continue: {again}")
        finally:
            warnings.show()
            if tracker is not None and tracker.ident is None:
                tracker = None  # Ray did not start: MLflow has no run of this one
            if tracker is not None:
                display.phase("uploading run and models to MLflow")
                code = _deliver(tracker, status, display.print_line, again) or code
    if status == "FINISHED":
        _summarise(console, config, folder, results, tracker)
    return code


def _deliver(tracker: Tracker, status: str, tell: Callable[[str], None], again: str) -> int:
    """Delivers the rest of a run that has ended; a signal interrupts it.

    Returns:
        0, or the exit code of an end by a signal.
    """
    try:
        with ended_by_sigterm(tracker.interrupt):
            timeout = FINISH_SECONDS if status == "FINISHED" else FAIL_SECONDS
            if not tracker.close(status, timeout, FAIL_SECONDS):
                tell(tracker.undelivered(again))
            return 0
    except (Stopped, KeyboardInterrupt) as stop:
        signum = stop.signum if isinstance(stop, Stopped) else signal.SIGINT
        tracker.break_off()
        tell(
            f"stopped by {signal.Signals(signum).name} before MLflow had everything; nothing is "
            f"lost, deliver it with: {again}"
        )
        return 128 + signum


def _how_to_continue(folder: RunFolder) -> str:
    """The command that continues a run, from the current folder."""
    return f"{COMMAND} resume={called(folder.path, home_folder() / 'runs')}"


def _summarise(
    console: Console,
    config: Config,
    folder: RunFolder,
    results: _Results,
    tracker: Tracker | None,
) -> None:
    if not results.evaluations:
        raise missing_evaluations(folder)
    chosen = chosen_model(results.evaluations)
    places = {"run": str(folder.path), "weights": str(folder.weights(chosen))}
    if tracker is not None and tracker.models:
        places["model"] = f"{tracker.models.get(chosen)} (mlflow.pytorch.load_model)"
        places["MLflow run"] = str(tracker.run_id)
        places["MLflow UI"] = how_to_open(tracker.uri)
    print_summary(console, config, folder, results.evaluations, places)


class _Results:
    """Keeps the evaluations of a run, also those from before it was continued."""

    def __init__(self, folder: RunFolder) -> None:
        record = read_record(folder)
        self.evaluations: dict[str, Mapping[str, Any]] = record.evaluations
        self.finished = record.finished and bool(self.evaluations)

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "evaluation":
            self.evaluations[event["which"]] = event
        self.finished = self.finished or event["kind"] == "finished"


class _Warnings:
    """Shows each thing that the workers warn of once, from now on."""

    def __init__(self, folder: RunFolder, print_line: Callable[[str], None]) -> None:
        self.path, self.print_line = folder.warnings, print_line
        self.shown = set(self._lines())

    def event(self, event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            self.show()

    def show(self) -> None:
        for line in self._lines():
            if line not in self.shown:
                self.shown.add(line)
                self.print_line(f"warning: {line}")

    def _lines(self) -> list[str]:
        return self.path.read_text(errors="replace").splitlines() if self.path.is_file() else []


def _continued(parsed: Words) -> tuple[str, Config, list[str], RunFolder]:
    """An earlier run with what may be changed laid over it: its recipe, the configuration, what is
    wrong, its folder."""
    problems = list(parsed.problems)
    if "recipe" in parsed.own:
        problems.append("give either recipe or resume: a continued run keeps its recipe")
    out = parsed.settings.pop("out", None)
    try:
        folder = find_run(parsed.own["resume"], local_path(out, "out") if out else None)
        earlier = folder.read_config()
    except UserError as error:
        raise UserError("\n".join([*problems, str(error)])) from None
    config, wrong = examine(overlay(earlier.model_dump(), parsed.settings))
    before, now = flatten(earlier.model_dump()), flatten(config.model_dump())
    fixed = [
        key for key in flatten(parsed.settings) if key not in CHANGEABLE and now[key] != before[key]
    ]
    if fixed:
        problems.append(
            f"{', '.join(fixed)} cannot change when a run is continued: start a new run, or change "
            f"only {', '.join(CHANGEABLE)}"
        )
    return str(folder.read_about().get("recipe") or ""), config, [*problems, *wrong], folder


def _help(console: Console) -> int:
    named = {
        "recipes": {name: recipe.description for name, recipe in BASE_RECIPES.items()},
        "variants, added to a recipe's name (recipe=quickstart-at)": {
            name: variant.description for name, variant in VARIANTS.items()
        },
        "data sets (data.name)": DATASETS,
        "models (model.name)": {**MODELS, "module:function": "your own"},
    }
    print_help(console, USAGE, __doc__, named)
    return 0


if __name__ == "__main__":
    sys.exit(main())
