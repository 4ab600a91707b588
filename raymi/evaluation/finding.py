"""What a check says of a network."""

from __future__ import annotations

from dataclasses import dataclass

FEW = 20
"""Images of which little can be said."""


@dataclass(frozen=True)
class Finding:
    """What a check measured, in words, and whether it is a sign of false robustness; `conclusive`,
    False: there was too little to look at, and nothing follows from it."""

    check: str
    suspicious: bool
    text: str
    conclusive: bool = True


def in_short(findings: tuple[Finding, ...]) -> str:
    """Findings none of which is suspicious, in a few words."""
    silent = sum(not finding.conclusive for finding in findings)
    text = f"no sign of false robustness in {len(findings) - silent} checks"
    return text + (f"; {silent} had too few images to tell" if silent else "")
