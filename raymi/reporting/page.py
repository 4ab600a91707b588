"""HTML page of a report: pictures and style are inside, without scripts or network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raymi import __version__
from raymi.formatting import interval_text, printable
from raymi.reporting.headline import headline
from raymi.reporting.sections import ReportedRun, Section, TextTable
from raymi.reporting.style import FORMATS, Picture
from raymi.reporting.table import READING, ComparisonTable


@dataclass(frozen=True)
class Report:
    """Content of a report.

    Attributes:
        title: of the page.
        command: that makes the report again.
        runs: in the report.
        tables: of their accuracies.
        sections: with their pictures.
        trials: of the sweeps in the report.
    """

    title: str
    command: str
    runs: Sequence[ReportedRun]
    tables: Sequence[ComparisonTable]
    sections: Sequence[Section]
    trials: Sequence[TextTable] = ()

    @property
    def headline(self) -> list[str]:
        """The result in a line for each method."""
        return headline(self.tables)

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [picture for section in self.sections for picture in section.pictures]

    @property
    def notes(self) -> list[str]:
        """Notes of the runs and warnings of their training."""
        return [
            f"{run.history.name}: {text}"
            for run in self.runs
            for text in (*run.notes, *run.history.warnings)
        ]


def as_html(report: Report) -> str:
    """Returns the page; all names are escaped, as are control characters."""
    environment = Environment(
        loader=PackageLoader("raymi.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg_address"] = _svg_address
    environment.filters["interval"] = lambda number: interval_text(number.low, number.high)
    return environment.get_template("page.html").render(
        report=report,
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        reading=READING,
        formats=tuple(FORMATS),
    )


def _printable(value: Any) -> Any:
    """Returns text with escaped control characters; output of a macro is escaped already."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value) if is_text else value


def _svg_address(picture: Picture) -> str:
    """Returns a picture as the address of an SVG image."""
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.as_bytes('svg')).decode()}"
