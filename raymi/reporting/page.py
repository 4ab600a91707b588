"""A report as one page that needs nothing else: pictures and style inside, no script, no
network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from raymi import __version__
from raymi.formatting import printable
from raymi.reporting.contents import Reported, Section
from raymi.reporting.look import FORMATS, Picture
from raymi.reporting.table import READING, ComparisonTable


class Trials(NamedTuple):
    """The trials of a sweep: what they are of, the names of columns, and a line for each trial."""

    caption: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Contents:
    """All that a report shows.

    `title`; `command` that makes it again; runs; their tables and pictures; trials, of the sweeps
    among what was named.
    """

    title: str
    command: str
    runs: Sequence[Reported]
    tables: Sequence[ComparisonTable]
    sections: Sequence[Section]
    trials: Sequence[Trials] = ()

    @property
    def pictures(self) -> list[Picture]:
        """All of them, in order."""
        return [picture for section in self.sections for picture in section.pictures]

    @property
    def notes(self) -> list[str]:
        """What is missing, and what the alarms of the trainings have said."""
        return [
            f"{run.history.name}: {text}"
            for run in self.runs
            for text in (*run.notes, *run.history.warnings)
        ]


def as_html(contents: Contents) -> str:
    """Returns the page; names, classes and commands are escaped, control characters too."""
    environment = Environment(
        loader=PackageLoader("raymi.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_literal,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=contents.title,
        command=contents.command,
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        notes=contents.notes,
        tables=contents.tables,
        reading=READING,
        trials=contents.trials,
        runs=[
            {
                "name": run.history.name,
                "facts": run.facts,
                "command": run.history.about.get("command", ""),
            }
            for run in contents.runs
        ],
        sections=[
            {
                "name": section.name,
                "heading": section.heading,
                "introduction": section.introduction,
                "pictures": [_of_picture(picture) for picture in section.pictures],
            }
            for section in contents.sections
        ],
    )


def _literal(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _of_picture(picture: Picture) -> dict[str, Any]:
    data = base64.b64encode(picture.as_bytes("svg")).decode()
    return {
        "name": picture.name,
        "title": picture.title,
        "caption": picture.caption,
        "alt": picture.alt,
        "source": f"data:image/svg+xml;base64,{data}",
        "files": ", ".join(f"{picture.name}.{kind}" for kind in FORMATS),
    }
