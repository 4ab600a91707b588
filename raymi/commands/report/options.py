"""Options of `python -m raymi.report`: draws pictures and one HTML page of runs.

RUN: the name or the folder of a run, or of a sweep, which stands for its winner. The page has
learning and robustness curves, natural and adversarial MI (Fig. 4 of the paper), accuracy against
the radius of the attack, accuracy by class, adversarial images, and tables of all saved accuracies
(of the training and of raymi.evaluate) in the layout of the paper. Only numbers of the same images,
threat and attack share a column. An unfinished run is shown up to its last epoch.

The report attacks test images with PGD at several radii. The outcomes are saved in the run's folder
for the next report. The folder of the report has index.html, which is self-contained, all pictures
for print, and the tables in Markdown and LaTeX. The report is also logged among the artifacts of
the runs in MLflow (report/NAME), unless tracking.enabled=false. Given again, the command replaces
both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raymi.commands.command_line import Command
from raymi.commands.option_types import NewFolder, Radii, writable_folder
from raymi.errors import UserError, did_you_mean
from raymi.fields import Count, Section, Whole
from raymi.formatting import plain_name, shown
from raymi.local_paths import local_path
from raymi.overrides import examine, nest, validate
from raymi.reporting.folder import check_folder
from raymi.runs.record import read_record
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import home_folder
from raymi.tuning.sweep_folder import Sweep

_LONGEST_NAME = 60
_NEWEST = 5
_SETTINGS = ("data.root", "data.download", "tracking.enabled")


class ReportOptions(Section):
    """Options of `python -m raymi.report`."""

    out: NewFolder | None = None
    """Folder of the report; none: reports/NAME."""
    title: str | None = None
    """Title of the page; none: names of the runs."""
    samples: Whole = 500
    """Number of test images of each run to attack; 0: no attack."""
    eps: Radii = ()
    """Radii of the attacks; none: 1/4 to 4 times the run's own."""
    steps: Count = 20
    """PGD steps."""

    @property
    def radii(self) -> tuple[float, ...]:
        """Radii above 0 in [0, 1] pixel units, as radius 0 needs no attack; empty: the default."""
        return tuple(sorted(set(self.eps) - {0.0}))


@dataclass(frozen=True)
class RunChoice:
    """A run of a report.

    Attributes:
        name: in the report.
        folder: of the run.
        sweep: of which the run is a trial; None for other runs.
    """

    name: str
    folder: RunFolder
    sweep: Sweep | None = None


@dataclass(frozen=True)
class ReportPlan:
    """Checked command line.

    Attributes:
        runs: of the report.
        out: folder of the report.
        title: of its page.
        options: of the command.
        settings: given keys of `Config`.
        command: that makes the same report.
    """

    runs: tuple[RunChoice, ...]
    out: Path
    title: str
    options: ReportOptions
    settings: dict[str, Any]
    command: str

    @property
    def name(self) -> str:
        """Name of the report in MLflow, after its folder."""
        return plain_name(self.out.name)

    @property
    def is_tracked(self) -> bool:
        """True if MLflow is used: for known accuracies and to log the report."""
        return validate(nest(self.settings)).tracking.enabled


def plan_report(words: Sequence[str]) -> ReportPlan:
    """Parses a command line; words without `=`, and folders, name runs or sweeps.

    Raises:
        UserError: words are wrong; one line for each problem.
    """
    line = COMMAND.parse(words)
    problems = examine(nest({"data.name": "digits", **line.settings}))[1]
    runs = _runs(line.others, problems)
    if not line.others:
        problems.append(f"give at least one run by name or folder: {COMMAND.program} RUN [RUN ...]")
    default = home_folder() / "reports" / _folder_name([run.name for run in runs])
    out = line.options.out or default
    try:
        writable_folder(out)
        check_folder(out)
    except UserError as error:
        problems.append(f"out: {error}")
    line.refuse(*problems)
    title = line.options.title or ", ".join(run.name for run in runs)
    return ReportPlan(tuple(runs), out, title, line.options, line.settings, line.command)


def _runs(words: Sequence[str], problems: list[str]) -> list[RunChoice]:
    """Returns the runs of some words, each once, with different names."""
    by_path: dict[Path, RunChoice] = {}
    for word in words:
        try:
            run = _find(word)
        except UserError as error:
            problems.append(str(error))
            continue
        path = run.folder.path.resolve()
        if path in by_path:
            problems.append(f"{word}: the run {run.name} is given twice: keep one")
        by_path[path] = run
    runs = list(by_path.values())
    names = [run.name for run in runs]
    return [
        replace(run, name=str(run.folder.path)) if names.count(run.name) > 1 else run
        for run in runs
    ]


def _find(word: str) -> RunChoice:
    """Finds a run, or the winner of a sweep, by name or folder.

    Raises:
        UserError: neither exists; the message lists similar or recent names.
    """
    runs, sweeps = home_folder() / "runs", home_folder() / "sweeps"
    here = local_path(word, "a run or a sweep")
    for path in (runs / word, here):
        if os.path.isfile((folder := RunFolder(path)).config):  # false for too long a name
            if (path.parents[1] / "sweep.json").is_file():
                return _of_sweep(Sweep(path.parents[1]), folder)
            return RunChoice(path.name, folder)
    for path in (sweeps / word, here):
        if os.path.isfile(path / "sweep.json"):
            return _winner(Sweep(path))
    if word in ReportOptions.model_fields:
        raise UserError(f"{word}: write {word}=VALUE")
    existing = [*runs.glob("*/config.json"), *sweeps.glob("*/sweep.json")]
    existing.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    known = [path.parent.name for path in existing]
    remedy = did_you_mean(word, known) if known else "there are none"
    if remedy.startswith("there are") and len(known) > _NEWEST:
        remedy = f"the newest are {', '.join(known[:_NEWEST])}"
    raise UserError(
        f"no run or sweep {shown(word)} in {runs} and {sweeps}: {remedy}; elsewhere, give its "
        "folder"
    )


def _winner(sweep: Sweep) -> RunChoice:
    """Returns the winner of a sweep, its only run with a test accuracy.

    Raises:
        UserError: the sweep has no winner yet.
    """
    for config in sorted(sweep.trials.glob("*/config.json")):
        folder = RunFolder(config.parent)
        if read_record(folder).evaluations:
            return _of_sweep(sweep, folder)
    raise UserError(
        f"the sweep {sweep.name} has no winner yet: let it finish, or give folders of trials, such "
        f"as {sweep.trials / '0000'}"
    )


def _of_sweep(sweep: Sweep, folder: RunFolder) -> RunChoice:
    return RunChoice(f"{sweep.name}/{folder.name}", folder, sweep)


def _folder_name(runs: Sequence[str]) -> str:
    """Returns the names of the runs, or, if they are long, the first one with a digest of all."""
    if len(" ".join(runs)) <= _LONGEST_NAME:
        return plain_name("-".join(runs))
    digits = hashlib.sha256("\n".join(runs).encode()).hexdigest()[:6]
    more = f"-and-{len(runs) - 1}-more" if len(runs) > 1 else ""
    return f"{plain_name(runs[0])[:_LONGEST_NAME]}{more}-{digits}"


COMMAND: Command[ReportOptions] = Command(
    "report",
    ReportOptions,
    plan_report,
    "raymi.commands.report.command:report",
    takes=lambda key: key in _SETTINGS,
    refusal=lambda key: (
        f"{key} is fixed by the runs: options of a report are "
        + ", ".join((*ReportOptions.model_fields, *_SETTINGS))
    ),
    others="RUN [RUN ...]",
    is_other=lambda word: "=" not in word or os.path.isdir(word),
)
