"""Findings of the checks for false robustness."""

from __future__ import annotations

from dataclasses import dataclass

FEW = 20
"""Images below which most checks are inconclusive."""


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Args:
        check: name.
        suspicious: the result is a sign of false robustness.
        text: the measurement.
        conclusive: False: too few images to draw a conclusion.
    """

    check: str
    suspicious: bool
    text: str
    conclusive: bool = True


def in_short(findings: tuple[Finding, ...]) -> str:
    """Returns a one-line summary of findings without a suspicious one."""
    inconclusive = sum(not finding.conclusive for finding in findings)
    text = f"no sign of false robustness in {len(findings) - inconclusive} checks"
    return text + (f"; {inconclusive} had too few images to tell" if inconclusive else "")
