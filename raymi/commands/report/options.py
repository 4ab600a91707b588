"""What a report is asked for: from the words of its command line to runs and settings."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raymi.commands.option_types import names, new_folder, whole
from raymi.config import Positive
from raymi.errors import UserError, did_you_mean
from raymi.evaluation.model_source import plain_name
from raymi.formatting import shown
from raymi.local_paths import local_path
from raymi.overrides import examine, flatten, nest, split_words
from raymi.reporting.files import check_folder
from raymi.runs.record import read_record
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import home_folder
from raymi.tuning.sweep_folder import Sweep

COMMAND = "python -m raymi.report"
OWN: dict[str, Iterable[str]] = {"out": (), "samples": (), "eps": (), "steps": (), "title": ()}
_TAKEN = ("data.root", "data.download", "tracking.enabled")
_SAMPLES, _STEPS = 500, 20
_LONGEST = 60
_NEWEST = 5
_RADIUS: TypeAdapter[float] = TypeAdapter(Positive)


@dataclass(frozen=True)
class Asked:
    """A run that a report is about: what it is called there, its folder, and the sweep that it is a
    trial of, None where it is of none."""

    name: str
    folder: RunFolder
    sweep: Sweep | None = None


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    `runs`; `out`, folder of the report; `title`; `samples`, test images that are attacked, 0: none;
    `radii` in pixel units, empty: multiples of each run's; `steps` of PGD; `settings`, given keys
    of `Config`; `command` that asks for the same.
    """

    runs: tuple[Asked, ...]
    out: Path
    title: str
    samples: int
    radii: tuple[float, ...]
    steps: int
    settings: dict[str, Any]
    command: str

    @property
    def name(self) -> str:
        """Of the report in MLflow: that of its folder, as far as it may be a part of a path."""
        return plain_name(self.out.name)


def takes(key: str) -> bool:
    """Whether a report takes a key of `Config`."""
    return key in _TAKEN


def requested(words: Sequence[str]) -> Request:
    """The words of a command line, judged: those without `=`, and folders, name runs or sweeps.

    Raises: UserError with a line for each thing that is wrong.
    """
    problems: list[str] = []
    named = [word for word in words if "=" not in word or os.path.isdir(word)]
    parsed = split_words([word for word in words if word not in named], OWN)
    own = parsed.own
    problems += parsed.problems
    problems += [
        f"{key} belongs to the runs and cannot change: a report takes {', '.join((*OWN, *_TAKEN))}"
        for key in flatten(parsed.settings)
        if not takes(key)
    ]
    given = {key: value for key, value in flatten(parsed.settings).items() if takes(key)}
    problems += examine(nest({"data.name": "digits", **given}))[1]
    runs = _runs(named, problems)
    if not named:
        problems.append(f"a run is needed: {COMMAND} RUN [RUN ...], its name or its folder")
    title = own.get("title") or ", ".join(run.name for run in runs)
    default = home_folder() / "reports" / _folder_name([run.name for run in runs])
    out = new_folder("out", own.get("out"), default, problems)
    if not problems:
        try:
            check_folder(out)
        except UserError as error:
            problems.append(str(error))
    request = Request(
        runs=tuple(runs),
        out=out,
        title=title,
        samples=whole("samples", own.get("samples"), _SAMPLES, problems, least=0),
        radii=_radii(own.get("eps"), problems),
        steps=whole("steps", own.get("steps"), _STEPS, problems),
        settings=given,
        command=f"{COMMAND} {shlex.join(words)}",
    )
    if problems:
        raise UserError("\n".join(problems))
    return request


def _runs(words: Sequence[str], problems: list[str]) -> list[Asked]:
    """The runs of some words, each once, all with different names."""
    found: dict[Path, Asked] = {}
    for word in words:
        try:
            asked = _find(word)
        except UserError as error:
            problems.append(str(error))
            continue
        place = asked.folder.path.resolve()
        if place in found:
            problems.append(f"{word}: the run {asked.name} is given twice: keep one")
        found[place] = asked
    everyone = list(found.values())
    called = [asked.name for asked in everyone]
    return [
        Asked(str(one.folder.path), one.folder, one.sweep) if called.count(one.name) > 1 else one
        for one in everyone
    ]


def _find(word: str) -> Asked:
    """The run of a name or a folder, or the one that won the sweep of a name or a folder.

    Raises: UserError with what there is.
    """
    runs, sweeps = home_folder() / "runs", home_folder() / "sweeps"
    here = local_path(word, "a run or a sweep")
    for path in (runs / word, here):
        if os.path.isfile((folder := RunFolder(path)).config):  # false for too long a name
            if (path.parents[1] / "sweep.json").is_file():
                return _of_sweep(Sweep(path.parents[1]), folder)
            return Asked(path.name, folder)
    for path in (sweeps / word, here):
        if os.path.isfile(path / "sweep.json"):
            return _winner(Sweep(path))
    if word in OWN:
        raise UserError(f"{word}: write {word}=VALUE")
    there = [*runs.glob("*/config.json"), *sweeps.glob("*/sweep.json")]
    there.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    known = [path.parent.name for path in there]
    remedy = did_you_mean(word, known) if known else "there are none"
    if remedy.startswith("there are") and len(known) > _NEWEST:
        remedy = f"the newest are {', '.join(known[:_NEWEST])}"
    raise UserError(
        f"no run or sweep {shown(word)} in {runs} and {sweeps}: {remedy}; elsewhere, give its "
        "folder"
    )


def _winner(sweep: Sweep) -> Asked:
    """The run of a sweep that was measured on the test set: the only one that is.

    Raises: UserError where there is none yet.
    """
    for config in sorted(sweep.trials.glob("*/config.json")):
        folder = RunFolder(config.parent)
        if read_record(folder).evaluations:
            return _of_sweep(sweep, folder)
    raise UserError(
        f"the sweep {sweep.name} has no winner yet: let it finish, or give the folders of trials, "
        f"such as {sweep.trials / '0000'}"
    )


def _of_sweep(sweep: Sweep, folder: RunFolder) -> Asked:
    return Asked(f"{sweep.name}/{folder.name}", folder, sweep)


def _radii(text: str | None, problems: list[str]) -> tuple[float, ...]:
    """Radii above 0: what is at 0 is known without an attack."""
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
    """A name for the folder of a report: that of its runs, where they are few."""
    together = plain_name("-".join(runs))
    if len(" ".join(runs)) <= _LONGEST:
        return together
    digits = hashlib.sha256("\n".join(runs).encode()).hexdigest()[:6]
    more = f"-and-{len(runs) - 1}-more" if len(runs) > 1 else ""
    return f"{plain_name(runs[0])[:_LONGEST]}{more}-{digits}"
