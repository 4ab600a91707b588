"""Results of one part of a benchmark: a table, the numbers as data, and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Section:
    """Results of one part.

    Attributes:
        title: title of the table.
        columns: headings of the table.
        rows: cells of the table.
        data: numbers for JSON.
        notes: lines below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Mapping[str, Any]
    notes: Sequence[str] = ()


class MeasurementFailed(RuntimeError):
    """Failure of one part; the message is its reason, and the other parts continue."""


def skipped(title: str, why: str) -> Section:
    """Returns the section of a part that cannot be measured."""
    return Section(title, (), (), {"skipped": why}, (f"not measured: {why}",))


def failed(part: str, why: str) -> Section:
    """Returns the section of a part that failed."""
    return Section(part, (), (), {"failed": why}, (f"failed: {why}",))


def number(value: float) -> str:
    """Returns a number with three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.{2 if abs(value) >= 1 else 3}f}"
