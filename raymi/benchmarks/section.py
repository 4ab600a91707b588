"""A part of the results: a table for people, the same as data, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Section:
    """What one part measured.

    title, columns, rows: the table. data: the numbers, for JSON. notes: lines below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Mapping[str, Any]
    notes: Sequence[str] = field(default_factory=tuple)


class MeasurementFailed(RuntimeError):
    """A part could not be measured; the message says why, and the other parts go on."""


def skipped(title: str, why: str) -> Section:
    """A part that was not measured, and why."""
    return Section(title, (), (), {"skipped": why}, (f"not measured: {why}",))


def failed(part: str, why: str) -> Section:
    """A part that failed, and how."""
    return Section(part, (), (), {"failed": why}, (f"failed: {why}",))


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.{2 if abs(value) >= 1 else 3}f}"
