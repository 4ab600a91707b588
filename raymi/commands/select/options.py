"""Options of `python -m raymi.select`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymi.commands.option_types import names, new_file, with_json
from raymi.config import TrackingConfig
from raymi.errors import UserError
from raymi.overrides import flatten, split_words
from raymi.selection.candidate import CLEAN
from raymi.selection.constraints import Constraint, split_constraints

COMMAND = "python -m raymi.select"
OWN: dict[str, Iterable[str]] = {
    "experiment": (),
    "sweep": (),
    "run": (),
    "metric": (),
    "data": (),
    "threat": (),
    "alias": (),
    "doubtful": ("allow", "refuse"),
    "registered_name": (),
    "json": (),
}
_ALIAS = re.compile(r"(?!v\d+$|latest$)[A-Za-z0-9_-]+")  # MLflow refuses others


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
    own = parsed.own
    problems += parsed.problems
    problems += [
        f"{key} has no effect on a selection: expected one of {', '.join(OWN)}"
        for key in flatten(parsed.settings)
    ]
    problems += [f"{key}: expected a value after {key}=" for key, text in own.items() if not text]
    alias, doubtful = own.get("alias", "champion"), own.get("doubtful", "refuse")
    if alias and not _ALIAS.fullmatch(alias):
        problems.append(
            f"alias: expected letters, digits, - and _, not latest and not v1, got {alias!r}"
        )
    if doubtful and doubtful not in OWN["doubtful"]:
        problems.append(f"doubtful: expected {' | '.join(OWN['doubtful'])}, got {doubtful!r}")
    name = own.get("registered_name")
    if name and set(name) & set("/:"):
        problems.append(f"registered_name: expected a name without / and :, got {name!r}")
    threat = own.get("threat")
    request = SelectRequest(
        experiment=own.get("experiment", TrackingConfig().experiment),
        sweep=own.get("sweep"),
        runs=names("run", own.get("run"), problems),
        metric=own.get("metric"),
        data=own.get("data"),
        threat=None if threat is None else re.sub(r"[^\w.]", "_", threat),
        constraints=constraints,
        alias=alias,
        allow_doubtful=doubtful == "allow",
        name=name,
        json=new_file("json", own.get("json"), problems),
        dry_run="--dry-run" in words,
        command=f"{COMMAND} {shlex.join(_without_output_options(words))}".strip(),
    )
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return request


def _without_output_options(words: Sequence[str]) -> list[str]:
    selecting = [word for word in with_json(words, []) if word != "--dry-run"]
    return [word for word in selecting if not word.startswith(("json=", "--json="))]
