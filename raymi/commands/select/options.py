"""Options of `python -m raymi.select`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from raymi.commands.option_types import names, new_file, with_json
from raymi.config import TrackingConfig
from raymi.errors import UserError
from raymi.fields import Section
from raymi.formatting import shown
from raymi.overrides import flatten, parse_options, split_words
from raymi.selection.candidate import CLEAN
from raymi.selection.constraints import Constraint, split_constraints

COMMAND = "python -m raymi.select"
_ALIAS = re.compile(r"(?!v\d+$|latest$)[A-Za-z0-9_-]+")  # MLflow refuses others


def _check_alias(text: str) -> str:
    if not _ALIAS.fullmatch(text):
        raise ValueError(
            f"expected letters, digits, - and _, not latest and not v1, got {shown(text)}"
        )
    return text


def _check_name(text: str | None) -> str | None:
    if set(text or "") & set("/:"):
        raise ValueError(f"expected a name without / and :, got {shown(text)}")
    return text


class SelectOptions(Section):
    """Options of `python -m raymi.select`, beside its constraints."""

    experiment: str = TrackingConfig().experiment
    """Experiment in MLflow."""
    sweep: str | None = None
    """Sweep whose models are candidates; none: all models."""
    run: str | None = None
    """Runs whose models are candidates, comma-separated names or ids; none: all models."""
    metric: str | None = None
    """Attack to rank by; none: AutoAttack, or the attack with the lowest mean accuracy."""
    data: str | None = None
    """Name of the images; none: the only ones."""
    threat: str | None = None
    """Threat, such as linf-8/255; none: the only one."""
    alias: Annotated[str, AfterValidator(_check_alias)] = "champion"
    """Alias in the registry."""
    doubtful: Literal["allow", "refuse"] = "refuse"
    """Allow models with signs of false robustness to be chosen."""
    registered_name: Annotated[str | None, AfterValidator(_check_name)] = None
    """Name under which the model is registered; none: of its run."""


OWN: dict[str, Iterable[str]] = {**dict.fromkeys(SelectOptions.model_fields, ()), "json": ()}


@dataclass(frozen=True)
class SelectRequest:
    """Options of the command.

    Attributes:
        experiment: in MLflow.
        sweep: whose models are candidates; None: all.
        runs: whose models are candidates; empty: all.
        metric: name of an attack; None: the default.
        data: name of the images; None: any.
        threat: such as `linf_8_255`; None: any.
        constraints: on the chosen model.
        alias: in the registry.
        allow_doubtful: whether a model with signs of false robustness may be chosen.
        name: under which the model is registered; None: of its run.
        json: file for all numbers; None: none.
        dry_run: whether MLflow stays as it is.
        command: with the same effect, without options for output.
    """

    experiment: str
    sweep: str | None
    runs: tuple[str, ...]
    metric: str | None
    data: str | None
    threat: str | None
    constraints: tuple[Constraint, ...]
    alias: str
    allow_doubtful: bool
    name: str | None
    json: Path | None
    dry_run: bool
    command: str


def requested(words: Sequence[str]) -> SelectRequest:
    """Parses the words of a command line.

    Raises:
        UserError: with a line for each invalid option.
    """
    problems: list[str] = []
    rest, constraints = split_constraints([w for w in words if w != "--dry-run"], problems)
    unquoted = [word for word in rest if word.partition("=")[0] == CLEAN]
    if unquoted:
        problems.append(
            f"{unquoted[0]}: expected a constraint such as 'clean>=0.80', in quotes: without them "
            "the shell redirects output to a file"
        )
    others = with_json([word for word in rest if word not in unquoted], problems)
    parsed = split_words(others, OWN)
    given = {key: text for key, text in parsed.own.items() if text}
    file = new_file("json", given.pop("json", None), problems)
    options, wrong = parse_options(SelectOptions, given)
    problems += [*parsed.problems, *wrong]
    problems += [
        f"{key} has no effect on a selection: expected one of {', '.join(OWN)}"
        for key in flatten(parsed.settings)
    ]
    problems += [
        f"{key}: expected a value after {key}=" for key, text in parsed.own.items() if not text
    ]
    threat = options.threat
    request = SelectRequest(
        experiment=options.experiment,
        sweep=options.sweep,
        runs=names("run", options.run, problems),
        metric=options.metric,
        data=options.data,
        threat=None if threat is None else re.sub(r"[^\w.]", "_", threat),
        constraints=constraints,
        alias=options.alias,
        allow_doubtful=options.doubtful == "allow",
        name=options.registered_name,
        json=file,
        dry_run="--dry-run" in words,
        command=f"{COMMAND} {shlex.join(_without_output_options(words))}".strip(),
    )
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return request


def _without_output_options(words: Sequence[str]) -> list[str]:
    selecting = [word for word in with_json(words, []) if word != "--dry-run"]
    return [word for word in selecting if not word.startswith(("json=", "--json="))]
