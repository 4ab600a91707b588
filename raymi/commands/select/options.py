"""What `raymi.select` is asked for: from the words of its command line."""

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
_ALIAS = re.compile(r"(?!v\d+$|latest$)[A-Za-z0-9_-]+")  # as MLflow takes it


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    `experiment` in MLflow; `sweep`, `runs`, whose models alone are candidates, None and (): all;
    `metric`, `data`, `threat`, None: what there is; `name`, under which the model is registered,
    None: its own; `json`, file for all numbers; `command` that asks for the same.
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


def requested(words: Sequence[str]) -> Request:
    """The words of a command line, judged.

    Raises: UserError with a line for each thing that is wrong.
    """
    problems: list[str] = []
    rest, constraints = split_constraints([w for w in words if w != "--dry-run"], problems)
    meant = [word for word in rest if word.partition("=")[0] == CLEAN]
    if meant:
        problems.append(
            f"{meant[0]}: expected a constraint such as 'clean>=0.80', in quotes: without them the "
            "shell takes > for the name of a file"
        )
    others = with_json([word for word in rest if word not in meant], problems)
    parsed = split_words(others, OWN)
    own = parsed.own
    problems += parsed.problems
    problems += [
        f"{key} decides nothing in a selection: expected one of {', '.join(OWN)}"
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
    request = Request(
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
        command=f"{COMMAND} {shlex.join(_asking(words))}".strip(),
    )
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return request


def _asking(words: Sequence[str]) -> list[str]:
    """The words without those that say only where the answer goes."""
    found = [word for word in with_json(words, []) if word != "--dry-run"]
    return [word for word in found if not word.startswith(("json=", "--json="))]
