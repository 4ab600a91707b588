"""What a reader of MLflow sees first on a sweep."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raymi.terminal.summary import result_table, result_title
from raymi.tracking.description import as_markdown
from raymi.tuning.results_table import Row
from raymi.tuning.sweep_folder import Sweep, TrialRun


def describe_sweep(
    sweep: Sweep,
    rows: Sequence[Row] = (),
    importance: Mapping[str, float] | None = None,
    winner: TrialRun | None = None,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
    model: str | None = None,
) -> str:
    """Markdown: what a sweep searches, what it found, and the commands that repeat and continue it.

    Args: rows, its trials; importance, fractions by the name of a parameter; winner, the run that
        was chosen; evaluations, the events of its journal, by the name of the model; model, the
        address of its chosen model in MLflow.
    """
    definition = sweep.definition
    space = definition.space
    again = f"python -m raymi.tune resume={shlex.quote(str(sweep.path))}"
    parts = [
        f"{space.name} ({space.description}) on {definition.recipe}, {sweep.num_trials} trials"
    ]
    if rows:
        states = Counter(row.state for row in rows)
        parts.append(", ".join(f"{num} {state}" for state, num in states.items()))
    if importance:
        shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in importance.items())
        parts.append(f"Differences between trials are due to: {shares}")
    if winner is not None:
        (values,) = (row.values for row in rows if row.number == winner.number)
        settings = " ".join(sweep.settings_words(values))
        parts.append(f"Chosen on validation: trial {winner.number}, {settings}")
        if evaluations:
            title = result_title(sweep.config_of(values), evaluations)
            parts += [title, as_markdown(result_table(evaluations))]
        if model is not None:
            parts.append(f"Its model: `{model}`")
    commands = [
        f"```\n{definition.command}\n```",
        f"To continue it, or to bring the rest of it here:\n\n```\n{again}\n```",
    ]
    return "\n\n".join([*parts, *commands])  # what was found first: the UI folds the rest away
