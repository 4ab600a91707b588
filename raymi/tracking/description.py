"""What a reader of MLflow sees first on a run: how to repeat it, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raymi.config import Config
from raymi.display.summary import result_table, result_title


def describe(
    config: Config, about: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]
) -> str:
    """Markdown: the command that repeats a run, and its result table where there is one.

    Args: about, what is known of the run, with `command`; evaluations, the journal's events,
        by the name of the model.
    """
    parts = [f"```\n{about.get('command', '')}\n```"]
    if evaluations:
        parts += [result_title(config, evaluations), as_markdown(result_table(evaluations))]
    return "\n\n".join(parts)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, whose first row is the header."""
    header, *others = rows
    lines = [header, ["---"] * len(header), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
