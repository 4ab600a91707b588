"""Options of a report: its runs, folder and attacks."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raymi.commands.option_types import names, new_folder
from raymi.errors import UserError, did_you_mean
from raymi.fields import Count, Positive, Section, Whole
from raymi.formatting import plain_name, shown
from raymi.local_paths import local_path
from raymi.overrides import examine, flatten, nest, parse_options, split_words, validate
from raymi.reporting.folder import check_folder
from raymi.runs.record import read_record
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import home_folder
from raymi.tuning.sweep_folder import Sweep

COMMAND = "python -m raymi.report"
_LONGEST_NAME = 60
_NEWEST = 5
_RADIUS: TypeAdapter[float] = TypeAdapter(Positive)
_SETTINGS = ("data.root", "data.download", "tracking.enabled")


class ReportOptions(Section):
    """Options of `python -m raymi.report`."""

    out: str | None = None
    """Folder of the report; none: reports/NAME."""
    title: str | None = None
    """Title of the page; none: names of the runs."""
    samples: Whole = 500
    """Number of test images of each run to attack; 0: no attack."""
    eps: str | None = None
    """Radii of the attacks, such as 4/255,8/255; none: 1/4 to 4 times the run's own."""
    steps: Count = 20
    """PGD steps."""


OWN: dict[str, Iterable[str]] = dict.fromkeys(ReportOptions.model_fields, ())


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
    """Checked options of a report.

    Attributes:
        runs: of the report.
        out: folder of the report.
        title: of its page.
        samples: number of test images to attack; 0: none.
        radii: of the attacks in [0, 1] pixel units; empty: multiples of each run's radius.
        steps: of PGD.
        settings: given keys of `Config`.
        command: that makes the same report.
    """

    runs: tuple[RunChoice, ...]
    out: Path
    title: str
    samples: int
    radii: tuple[float, ...]
    steps: int
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


def is_setting(key: str) -> bool:
    """Returns whether a key of `Config` is an option of a report."""
    return key in _SETTINGS


def plan_report(words: Sequence[str]) -> ReportPlan:
    """Parses a command line; words without `=`, and folders, name runs or sweeps.

    Raises:
        UserError: words are wrong; one line for each problem.
    """
    problems: list[str] = []
    named = [word for word in words if "=" not in word or os.path.isdir(word)]
    parsed = split_words([word for word in words if word not in named], OWN)
    options, wrong = parse_options(ReportOptions, parsed.own)
    problems += [*parsed.problems, *wrong]
    problems += [
        f"{key} is fixed by the runs: options of a report are {', '.join((*OWN, *_SETTINGS))}"
        for key in flatten(parsed.settings)
        if not is_setting(key)
    ]
    given = {key: value for key, value in flatten(parsed.settings).items() if is_setting(key)}
    problems += examine(nest({"data.name": "digits", **given}))[1]
    runs = _runs(named, problems)
    if not named:
        problems.append(f"give at least one run by name or folder: {COMMAND} RUN [RUN ...]")
    title = options.title or ", ".join(run.name for run in runs)
    default = home_folder() / "reports" / _folder_name([run.name for run in runs])
    out = new_folder("out", options.out, default, problems)
    if not problems:
        try:
            check_folder(out)
        except UserError as error:
            problems.append(str(error))
    plan = ReportPlan(
        runs=tuple(runs),
        out=out,
        title=title,
        samples=options.samples,
        radii=_radii(options.eps, problems),
        steps=options.steps,
        settings=given,
        command=f"{COMMAND} {shlex.join(words)}",
    )
    if problems:
        raise UserError("\n".join(problems))
    return plan


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
    if word in OWN:
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


def _radii(text: str | None, problems: list[str]) -> tuple[float, ...]:
    """Returns the radii above 0, as radius 0 needs no attack."""
    found = []
    for part in names("eps", text, problems):
        try:
            found.append(0.0 if part == "0" else _RADIUS.validate_python(part))
        except ValidationError:
            problems.append(
                f"eps: expected radii in pixel units such as 4/255,8/255, got {shown(part)}"
            )
    return tuple(sorted(set(found) - {0.0}))


def _folder_name(runs: Sequence[str]) -> str:
    """Returns the names of the runs, or, if they are long, the first one with a digest of all."""
    if len(" ".join(runs)) <= _LONGEST_NAME:
        return plain_name("-".join(runs))
    digits = hashlib.sha256("\n".join(runs).encode()).hexdigest()[:6]
    more = f"-and-{len(runs) - 1}-more" if len(runs) > 1 else ""
    return f"{plain_name(runs[0])[:_LONGEST_NAME]}{more}-{digits}"
