"""A report from what it is asked for to its folder and MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from raymi.attacks.catalogue import Threat
from raymi.commands.find_model import Found, find_model_source, tracked
from raymi.commands.report.options import Asked, Request
from raymi.config import Config, DataConfig
from raymi.data import ImageSet
from raymi.engine.validation import load_data
from raymi.errors import UserError
from raymi.evaluation.model_source import check_classifier
from raymi.overrides import nest, overlay, validate
from raymi.reporting.contents import Reported, sections
from raymi.reporting.files import write_report
from raymi.reporting.history import History, read_history
from raymi.reporting.measured import Measured, measure
from raymi.reporting.numbers import Entry, merged, of_evaluations, of_training
from raymi.reporting.page import Contents, Trials
from raymi.reporting.table import comparison_tables
from raymi.runs.run_paths import home_folder
from raymi.tracking.faults import error_with_remedy
from raymi.tracking.reports import find_numbers, log_report
from raymi.tracking.store import without_password
from raymi.tuning.results_table import as_columns, trial_rows
from raymi.tuning.sweep_folder import Sweep

MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
"""Radii at which a run is attacked, in units of its own."""

_REMEDY = "a sign of false robustness, look closer with python -m raymi.evaluate"

Say = Callable[[str], None]
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """A run that can be reported: what it is called, what its folder says, its chosen model (None
    before there is one), and the images that it is attacked on (None: it is not)."""

    asked: Asked
    history: History
    found: Found | None
    images: ImageSet | None
    notes: tuple[str, ...]


def planned(request: Request) -> list[Plan]:
    """Everything that a report needs, read and checked before anything takes long.

    Raises: UserError for what the user can put right.
    """
    sets: dict[DataConfig, ImageSet] = {}
    return [_planned(request, asked, sets) for asked in request.runs]


def _planned(request: Request, asked: Asked, sets: dict[DataConfig, ImageSet]) -> Plan:
    history = read_history(asked.folder, asked.name)
    tracked(asked.folder)  # a damaged file is told before anything takes long
    if asked.sweep is not None and not history.about:  # a trial's folder does not say it
        definition = asked.sweep.definition
        about = {"recipe": definition.recipe, "command": definition.command}
        history = replace(history, about=about)
    if not asked.folder.weights(history.chosen).is_file() or not history.start:
        return Plan(asked, history, None, None, (_why_no_model(asked, history),))
    found = find_model_source(str(asked.folder.path), Config(), which=history.chosen)
    if not request.samples:
        return Plan(asked, history, found, None, ())
    if history.config.attack.eps == 0:
        return Plan(asked, history, found, None, ("its radius is 0: nothing is attacked",))
    config = _with_settings(history.config, request)
    if config.data not in sets:
        sets[config.data] = _test_images(config)
    everything = sets[config.data]
    if not len(everything):
        return Plan(asked, history, found, None, ("its data have no test images to attack",))
    num_classes, size = len(everything.class_names), everything.images.shape[-1]
    check_classifier(asked.name, found.source.load(), num_classes, size)
    notes = []
    if history.start["data"]["digests"].get("test") not in (None, everything.digest):
        notes.append(
            "the test images are other ones now than when it was trained: its curves and what "
            "was measured here are not of the same data"
        )
    return Plan(asked, history, found, everything.at_most(request.samples), tuple(notes))


def _why_no_model(asked: Asked, history: History) -> str:
    weights = asked.folder.weights(history.chosen)
    if weights.is_file():
        return (
            f"{asked.folder.journal} does not say what it was trained on: nothing is attacked, and "
            "there is no more to show than the journal says"
        )
    if history.evaluations or history.finished:
        return f"its weights {weights} are gone: nothing is attacked, this is what its journal says"
    return "it is not finished and has no model of its own yet: this is what it has so far"


def _with_settings(config: Config, request: Request) -> Config:
    tree = overlay(config.model_dump(), nest(request.settings))
    tree["data"]["generated"] = None  # not needed here
    return validate(tree)


def _test_images(config: Config) -> ImageSet:
    try:
        return load_data(config).test
    except UserError as error:
        raise UserError(f"{error}\nor give samples=0, for a report without attacks") from None


def make_report(request: Request, plans: list[Plan], print_line: Say, watch: Watch) -> list[Path]:
    """Measures, draws and writes.

    Args: say, takes a line about what is not as it should be; watch, called with a run's name,
        images attacked so far, and in all.
    Returns: the files, the page last.
    Raises: StorageError where a file cannot be written.
    """
    known = _Known(request, print_line)
    runs = []
    for plan in plans:
        entries = known.entries(plan)
        measured = _measured(request, plan, print_line, watch)
        doubts = [] if measured is None else [f"{one}: {_REMEDY}" for one in measured.suspicions()]
        for doubt in doubts:
            print_line(f"{plan.asked.name}: {doubt}")
        runs.append(Reported(plan.history, entries, measured, (*plan.notes, *doubts)))
    contents = Contents(
        request.title,
        request.command,
        runs,
        comparison_tables([run.as_row for run in runs]),
        sections(runs),
        [_trials(sweep, plans) for sweep in _sweeps(plans)],
    )
    return write_report(request.out, contents)


def _measured(request: Request, plan: Plan, print_line: Say, watch: Watch) -> Measured | None:
    if plan.images is None or plan.found is None:
        return None
    config, source = plan.history.config, plan.found.source
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threat = Threat(config.attack.norm, config.attack.eps)
    most = 1.0 if threat.norm == "linf" else float("inf")  # beyond it there is nothing to reach
    radii = request.radii or tuple(m * threat.eps for m in MULTIPLES if m * threat.eps <= most)
    return measure(
        source.load().to(device),
        source.digest,
        plan.images.to(device),
        f"{config.data.name}-test",
        threat,
        radii,
        steps=request.steps,
        block=config.evaluation.block,
        micro_batch=config.scaling.micro_batch,
        folder=plan.asked.folder.path / "report",
        heartbeat=lambda done, of: watch(plan.asked.name, done, of),
        tell=print_line,
    )


class _Known:
    """Accuracies that were measured before, on this disk and in MLflow."""

    def __init__(self, request: Request, print_line: Say) -> None:
        self.request, self.print_line = request, print_line
        self.away: set[str] = set()

    def entries(self, plan: Plan) -> list[Entry]:
        """Of a run's chosen model; what is on this disk goes first. Where its weights are gone,
        what the training has measured."""
        found = plan.found
        if found is None:
            return of_training(plan.history)
        beside = plan.asked.folder.path.parents[1] / "evaluations"
        folders = dict.fromkeys((beside.resolve(), (home_folder() / "evaluations").resolve()))
        here = of_evaluations(folders, found.source.digest)
        return merged([*here, *of_training(plan.history), *self._in_mlflow(found)])

    def _in_mlflow(self, found: Found) -> list[Entry]:
        if not is_tracked(self.request) or found.uri is None or found.model_id is None:
            return []
        if found.uri in self.away:
            return []
        try:
            numbers = find_numbers(found.uri, found.model_id)
        except Exception as error:  # whatever it is, a report does without
            self.away.add(found.uri)
            self.print_line(
                f"accuracies in MLflow at {without_password(found.uri)} are left out "
                f"({error_with_remedy(error, found.uri)})"
            )
            return []
        return [Entry(one.protocol, one.numbers, one.doubts) for one in numbers]


def is_tracked(request: Request) -> bool:
    """Whether MLflow is looked at and told."""
    return validate(nest(request.settings)).tracking.enabled


@dataclass(frozen=True)
class Tracked:
    """What MLflow was told: the names of the runs; the address of their store, which may hold a
    password; or the problem in one line."""

    names: tuple[str, ...]
    uri: str
    problem: str = ""


def track(request: Request, plans: list[Plan], files: list[Path]) -> Iterator[Tracked]:
    """Puts a report among the artifacts of its runs that are in MLflow.

    Yields: what came of each store, once it is told.
    """
    by_store: dict[str, dict[str, str]] = {}
    for plan in plans:
        kept = tracked(plan.asked.folder)
        if kept.get("uri") and kept.get("run_id"):
            by_store.setdefault(kept["uri"], {})[plan.asked.name] = kept["run_id"]
    for uri, runs in by_store.items():
        yield _told(uri, runs, request.name, files)


def _told(uri: str, runs: Mapping[str, str], name: str, files: list[Path]) -> Tracked:
    told = []
    try:
        for run, run_id in runs.items():
            if log_report(uri, run_id, name, files):
                told.append(run)
    except Exception as error:  # whatever the server or the network does, the report is here
        return Tracked(tuple(runs), uri, error_with_remedy(error, uri))
    return Tracked(tuple(told), uri)


def _sweeps(plans: Sequence[Plan]) -> list[Sweep]:
    """Those that runs are trials of, each once."""
    sweeps = [plan.asked.sweep for plan in plans if plan.asked.sweep is not None]
    return list({sweep.path.resolve(): sweep for sweep in sweeps}.values())


def _trials(sweep: Sweep, plans: Sequence[Plan]) -> Trials:
    header, lines = as_columns(trial_rows(sweep, sweep.study()))
    judged = [  # by the test set, which only the winner is
        f" Trial {int(plan.asked.folder.name[:4])} won."
        for plan in plans
        if plan.asked.sweep is not None
        and plan.asked.sweep.path.samefile(sweep.path)
        and plan.history.evaluations
    ]
    return Trials(
        f"All trials of the sweep {sweep.name}: what each drew, and its best accuracies on "
        "validation as fractions; most were stopped early, so they are not a fair comparison."
        + "".join(judged[:1]),
        header,
        [[_value_text(value) for value in line] for line in lines],
    )


def _value_text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
