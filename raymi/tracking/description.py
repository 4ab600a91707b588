"""Descriptions of runs and sweeps in MLflow: results, and the command that repeats them."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raymi.config import Config
from raymi.evaluation.finding import in_short
from raymi.evaluation.report import Report
from raymi.formatting import interval_text, markdown_table, percent_text, threat_text
from raymi.terminal.summary import result_table, result_title

if TYPE_CHECKING:
    from raymi.tuning.results_table import Row
    from raymi.tuning.sweep_folder import Sweep, TrialRun

NOTE = "mlflow.note.content"
"""Tag that MLflow shows as the description of a run."""

_SECTION = "### "


def run_description(
    config: Config,
    about: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> str:
    """Returns the description of a run as Markdown: command, results if any, and notes.

    MLflow's run page shows the first five lines, and folds the rest.

    Args:
        config: of the run.
        about: facts about the run, with `command`.
        evaluations: events of the journal by model.
        notes: lines below the results.
    """
    command = _code(about.get("command", ""))
    if not evaluations:
        return "\n\n".join([*notes, command])
    title = f"{result_title(config, evaluations)}: {_inline(about.get('command', ''))}"
    return "\n\n".join([title, markdown_table(result_table(evaluations)), *notes])


def sweep_description(
    sweep: Sweep,
    rows: Sequence[Row] = (),
    importance: Mapping[str, float] | None = None,
    winner: TrialRun | None = None,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
    model: str | None = None,
) -> str:
    """Returns the description of a sweep as Markdown: space, results, commands.

    Args:
        sweep: of the trials.
        rows: of its trials.
        importance: fractions by parameter.
        winner: run that was chosen.
        evaluations: events of the winner's journal by model.
        model: address of the winner's chosen model in MLflow.
    """
    definition = sweep.definition
    space = definition.space
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
            parts += [title, markdown_table(result_table(evaluations))]
        if model is not None:
            parts.append(f"Its model: `{model}`")
    resume = _code(f"python -m raymi.tune resume={shlex.quote(str(sweep.path))}")
    command = _code(definition.command)
    return "\n\n".join([*parts, command, "To resume it, or to upload the rest of it:", resume])


def evaluation_section(report: Report, command: str) -> str:
    """Returns a section of a description as Markdown: results of an evaluation, and its command."""
    threat = threat_text(**report.protocol["threat"])
    rows = [("attack", "accuracy", "95% interval")]
    for result in report.results:
        if result.detail:
            continue
        interval = f"{interval_text(*result.interval)}%"
        rows.append((result.name, percent_text(result.accuracy), interval))
    title = f"{_SECTION}{report.name}: {report.num} images of {report.data}, {threat}"
    notes = [f"{result.note}." for result in report.results if result.note]
    parts = [title, markdown_table(rows), *notes]
    if report.findings:
        doubts = "; ".join(f"{one.check} ({one.text})" for one in report.suspicions)
        parts.append(
            f"Signs of false robustness: {doubts}" if doubts else in_short(report.findings)
        )
    return "\n\n".join([*parts, _code(command)])


def with_evaluation(text: str, section: str) -> str:
    """Returns a description with the section of an evaluation.

    The section replaces earlier ones of the same attacks.
    """
    head, *sections = _sections(text)
    others = [one for one in sections if not _title_and_attacks(one) <= _title_and_attacks(section)]
    return "\n\n".join([*filter(None, [head]), *others, section])


def evaluations_in(text: str) -> str:
    """Returns the sections of evaluations in a description, to be appended to another one."""
    return "".join(f"\n\n{section}" for section in _sections(text)[1:])


def _sections(text: str) -> list[str]:
    """Returns the text before all evaluations, and the section of each."""
    head, *sections = f"\n\n{text}".split(f"\n\n{_SECTION}")
    return [head.removeprefix("\n\n"), *(f"{_SECTION}{one}" for one in sections)]


def _title_and_attacks(section: str) -> set[str]:
    title, *lines = section.splitlines()
    return {title, *(line.split("|")[1] for line in lines if line.startswith("| "))}


def _inline(command: str) -> str:
    """Returns a command in the middle of a line of Markdown; it may have backticks."""
    fence = "`" * (1 + max(map(len, re.findall("`+", command)), default=0))
    space = " " if "`" in command else ""
    return f"{fence}{space}{command}{space}{fence}"


def _code(command: str) -> str:
    return f"```\n{command}\n```"
