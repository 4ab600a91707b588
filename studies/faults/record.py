"""Faults and their outcomes, counted for docs/faults.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["refused", "reported", "equal", "accepted", "traceback", "silent", "hang", "lost"]

MEANING: dict[Outcome, str] = {
    "refused": "one message, exit code 1 or 2",
    "reported": "finished, with a message that names the fault",
    "equal": "finished, with the results of an undisturbed command",
    "accepted": "valid: the command began its work",
    "traceback": "a traceback",
    "silent": "finished with other results, without a message",
    "hang": "did not end",
    "lost": "results were lost",
}
"""Outcomes of a fault, each with its meaning. The last four are defects."""

DEFECTS: tuple[Outcome, ...] = ("traceback", "silent", "hang", "lost")


@dataclass(frozen=True)
class Fault:
    """A fault that was tried.

    Args:
        kind: heading under which it is counted, such as `killed worker`.
        command: command that met it.
        detail: what exactly was done, enough to repeat it.
        outcome: one of `MEANING`.
        message: last line that the command printed about it.
    """

    kind: str
    command: str
    detail: str
    outcome: Outcome
    message: str = ""


def save(faults: Iterable[Fault], file: Path) -> None:
    """Writes faults as JSON, one a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(fault), ensure_ascii=True) for fault in faults]
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def load(file: Path) -> list[Fault]:
    """Reads faults that `save` wrote."""
    return [Fault(**fault) for fault in json.loads(file.read_text())]


def table(faults: Iterable[Fault]) -> str:
    """Counts faults by kind and outcome, as a Markdown table with a line of totals."""
    counts: dict[str, Counter[str]] = {}
    for fault in faults:
        counts.setdefault(fault.kind, Counter())[fault.outcome] += 1
    total = sum(counts.values(), Counter())
    used = [name for name in MEANING if total[name] or name in DEFECTS]
    rows = [["fault", "tried", *used], ["---", *["--:"] * (1 + len(used))]]
    for kind, outcomes in [*counts.items(), ("**all**", total)]:
        rows.append([kind, str(outcomes.total()), *(str(outcomes[name]) for name in used)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
