"""Makes a report: reads the runs, measures, draws, writes, and logs to MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from raymi.attacks.catalogue import Threat
from raymi.commands.find_model import LocatedModel, find_model_source, tracked
from raymi.commands.report.options import ReportPlan, RunChoice
from raymi.config import Config
from raymi.data import ImageSet
from raymi.data.settings import DataConfig
from raymi.engine.validation import load_data
from raymi.errors import UserError
from raymi.evaluation.model_source import check_classifier
from raymi.overrides import nest, overlay, validate
from raymi.reporting.accuracies import (
    ProtocolAccuracies,
    evaluation_accuracies,
    merge_accuracies,
    training_accuracies,
)
from raymi.reporting.files import write_report
from raymi.reporting.history import History, read_history
from raymi.reporting.page import Report
from raymi.reporting.robustness_curve import RobustnessCurve, measure_curve
from raymi.reporting.sections import ReportedRun, TextTable, sections
from raymi.reporting.table import comparison_tables
from raymi.runs.run_paths import home_folder
from raymi.tracking.faults import error_with_remedy
from raymi.tracking.reports import find_numbers, log_report
from raymi.tracking.store import without_password
from raymi.tuning.results_table import as_columns, trial_rows
from raymi.tuning.sweep_folder import Sweep

MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
"""Radii of the attacks in units of the run's radius."""

_REMEDY = "a sign of false robustness; check it with python -m raymi.evaluate"

Log = Callable[[str], None]


@dataclass(frozen=True)
class RunInputs:
    """Checked inputs of a report on one run.

    Attributes:
        run: of the report.
        history: of the run.
        model: chosen by the run; None before it has one.
        images: to attack; None: no attack.
        notes: lines about missing parts.
    """

    run: RunChoice
    history: History
    model: LocatedModel | None = None
    images: ImageSet | None = None
    notes: tuple[str, ...] = ()


def read_inputs(plan: ReportPlan) -> list[RunInputs]:
    """Reads and checks all inputs of a report before any attack.

    Raises:
        UserError: a run or its data cannot be read.
    """
    datasets: dict[DataConfig, ImageSet] = {}
    return [_inputs(plan, run, datasets) for run in plan.runs]


def _inputs(plan: ReportPlan, run: RunChoice, datasets: dict[DataConfig, ImageSet]) -> RunInputs:
    history = read_history(run.folder, run.name)
    tracked(run.folder)  # refuses a damaged file before any attack
    if run.sweep is not None and not history.about:  # folders of trials lack it
        definition = run.sweep.definition
        about = {"recipe": definition.recipe, "command": definition.command}
        history = replace(history, about=about)
    if not run.folder.weights(history.chosen).is_file() or not history.start:
        return RunInputs(run, history, notes=(_missing_model(run, history),))
    model = find_model_source(str(run.folder.path), Config(), which=history.chosen)
    if not plan.options.samples:
        return RunInputs(run, history, model)
    if history.config.attack.eps == 0:
        return RunInputs(run, history, model, notes=("no attack, as its radius is 0",))
    config = _with_settings(history.config, plan)
    if config.data not in datasets:
        datasets[config.data] = _test_images(config)
    images = datasets[config.data]
    if not len(images):
        return RunInputs(run, history, model, notes=("no attack, as its data have no test images",))
    num_classes, size = len(images.class_names), images.images.shape[-1]
    check_classifier(run.name, model.source.load(), num_classes, size)
    notes = []
    if history.start["data"]["digests"].get("test") not in (None, images.digest):
        notes.append(
            "the test images have changed since training: accuracies of the training and of this "
            "report are not comparable"
        )
    return RunInputs(run, history, model, images.at_most(plan.options.samples), tuple(notes))


def _missing_model(run: RunChoice, history: History) -> str:
    weights = run.folder.weights(history.chosen)
    if weights.is_file():
        return (
            f"no attack, as {run.folder.journal} lacks the data that it was trained on; shown is "
            "the rest of the journal"
        )
    if history.evaluations or history.finished:
        return f"no attack, as its weights {weights} are missing; shown is its journal"
    return "not finished, so it has no model to attack; shown are its epochs so far"


def _with_settings(config: Config, plan: ReportPlan) -> Config:
    tree = overlay(config.model_dump(), nest(plan.settings))
    tree["data"]["generated"] = None  # training images are not needed
    return validate(tree)


def _test_images(config: Config) -> ImageSet:
    try:
        return load_data(config).test
    except UserError as error:
        raise UserError(f"{error}\nor set samples=0, for a report without attacks") from None


def make_report(
    plan: ReportPlan,
    inputs: list[RunInputs],
    log: Log,
    on_progress: Callable[[str, int, int], None],
) -> list[Path]:
    """Measures, draws and writes a report.

    Args:
        plan: of the report.
        inputs: of its runs.
        log: called with warnings.
        on_progress: called with the name of a run, and its attacked images so far and in all.

    Returns:
        The files, the page last.

    Raises:
        StorageError: a file cannot be written.
    """
    unreachable: set[str] = set()
    runs = []
    for one in inputs:
        accuracies = _saved_accuracies(plan, one, unreachable, log)
        curve = _curve(plan, one, log, on_progress)
        warnings = [] if curve is None else [f"{text}: {_REMEDY}" for text in curve.warnings()]
        for text in warnings:
            log(f"{one.run.name}: {text}")
        runs.append(ReportedRun(one.history, accuracies, curve, (*one.notes, *warnings)))
    sweeps = {
        one.run.sweep.path.resolve(): one.run.sweep for one in inputs if one.run.sweep is not None
    }
    report = Report(
        plan.title,
        plan.command,
        runs,
        comparison_tables([run.as_row for run in runs]),
        sections(runs),
        [_trial_table(sweep, inputs) for sweep in sweeps.values()],
    )
    return write_report(plan.out, report)


def _curve(
    plan: ReportPlan,
    one: RunInputs,
    log: Log,
    on_progress: Callable[[str, int, int], None],
) -> RobustnessCurve | None:
    if one.images is None or one.model is None:
        return None
    config, source = one.history.config, one.model.source
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threat = Threat(config.attack.norm, config.attack.eps)
    largest = 1.0 if threat.norm == "linf" else float("inf")  # a larger one reaches no other image
    radii = plan.options.radii or tuple(
        m * threat.eps for m in MULTIPLES if m * threat.eps <= largest
    )
    return measure_curve(
        source.load().to(device),
        source.digest,
        one.images.to(device),
        f"{config.data.plain_name}-test",
        threat,
        radii,
        steps=plan.options.steps,
        block=config.evaluation.block,
        micro_batch=config.scaling.micro_batch,
        folder=one.run.folder.path / "report",
        heartbeat=lambda done, total: on_progress(one.run.name, done, total),
        log=log,
    )


def _saved_accuracies(
    plan: ReportPlan, one: RunInputs, unreachable: set[str], log: Log
) -> list[ProtocolAccuracies]:
    """Returns accuracies of the chosen model from disk, then from MLflow.

    Args:
        plan: of the report.
        one: inputs of the run; without a model, the accuracies of its training remain.
        unreachable: addresses of MLflow stores that did not answer; extended.
        log: called with warnings.
    """
    model = one.model
    if model is None:
        return training_accuracies(one.history)
    beside = one.run.folder.path.parents[1] / "evaluations"
    folders = dict.fromkeys((beside.resolve(), (home_folder() / "evaluations").resolve()))
    saved = evaluation_accuracies(folders, model.source.digest) + training_accuracies(one.history)
    uri, model_id = model.uri, model.model_id
    if plan.is_tracked and uri is not None and model_id is not None and uri not in unreachable:
        try:
            saved += [
                ProtocolAccuracies(numbers.protocol, numbers.numbers, numbers.doubts)
                for numbers in find_numbers(uri, model_id)
            ]
        except Exception as error:  # the report does not need MLflow
            unreachable.add(uri)
            log(
                f"without the accuracies in MLflow at {without_password(uri)} "
                f"({error_with_remedy(error, uri)})"
            )
    return merge_accuracies(saved)


@dataclass(frozen=True)
class Upload:
    """Upload of a report to an MLflow store.

    Attributes:
        runs: names of the runs that have the report.
        uri: address of the store; it may hold a password.
        problem: in one line; empty without one.
    """

    runs: tuple[str, ...]
    uri: str
    problem: str = ""


def upload_report(plan: ReportPlan, inputs: list[RunInputs], files: list[Path]) -> Iterator[Upload]:
    """Logs a report among the artifacts of its runs in MLflow, unless tracking is off.

    Yields:
        The result for each store.
    """
    by_store: dict[str, dict[str, str]] = {}
    for one in inputs if plan.is_tracked else ():
        place = tracked(one.run.folder)
        if place.get("uri") and place.get("run_id"):
            by_store.setdefault(place["uri"], {})[one.run.name] = place["run_id"]
    for uri, runs in by_store.items():
        try:
            logged = [
                name for name, run_id in runs.items() if log_report(uri, run_id, plan.name, files)
            ]
            yield Upload(tuple(logged), uri)
        except Exception as error:  # the report is on disk in any case
            yield Upload(tuple(runs), uri, error_with_remedy(error, uri))


def _trial_table(sweep: Sweep, inputs: Sequence[RunInputs]) -> TextTable:
    header, rows = as_columns(trial_rows(sweep, sweep.study()))
    winners = [
        f" Trial {int(one.run.folder.name[:4])} won."
        for one in inputs
        if one.run.sweep is not None
        and one.run.sweep.path.samefile(sweep.path)
        and one.history.evaluations  # on test images, which only the winner has
    ]
    return TextTable(
        f"All trials of the sweep {sweep.name}: parameters, and best accuracies on validation as "
        "fractions. Most trials were stopped early, so they are not a fair comparison."
        + "".join(winners[:1]),
        header,
        [[_value_text(value) for value in row] for row in rows],
    )


def _value_text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
