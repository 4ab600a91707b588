"""What a reader of MLflow sees first on a run: how to repeat it, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymi.config import Config
from raymi.evaluation.finding import in_short
from raymi.evaluation.report import Report
from raymi.formatting import interval_text, markdown_table, percent_text, threat_text
from raymi.terminal.summary import result_table, result_title

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run."""

_SECTION = "### "


def describe(
    config: Config, about: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]
) -> str:
    """Markdown: the command that repeats a run, and its result table where there is one.

    Args: about, what is known of the run, with `command`; evaluations, the journal's events,
        by the name of the model.
    """
    parts = []
    if evaluations:  # first, as the UI folds the rest away
        parts = [result_title(config, evaluations), markdown_table(result_table(evaluations))]
    return "\n\n".join([*parts, f"```\n{about.get('command', '')}\n```"])


def describe_evaluation(report: Report, command: str) -> str:
    """Markdown: what an evaluation found, and the command that repeats it."""
    threat = threat_text(**report.protocol["threat"])
    where = f"{report.num} images of {report.data}, {threat}"
    rows = [("attack", "accuracy", "95% interval")]
    for result in report.results:
        interval = f"{interval_text(*result.interval)}%"
        rows.append((result.name, percent_text(result.accuracy), interval))
    parts = [f"{_SECTION}{report.name}: {where}", markdown_table(rows)]
    if report.findings:
        doubts = "; ".join(f"{one.check} ({one.text})" for one in report.suspicions)
        parts.append(
            f"Signs of false robustness: {doubts}" if doubts else in_short(report.findings)
        )
    return "\n\n".join([*parts, f"```\n{command}\n```"])


def with_evaluation(text: str, told: str) -> str:
    """A run's description with what `describe_evaluation` says, in the place of what it said
    of the same attacks before."""
    head, *sections = _sections(text)
    kept = [one for one in sections if not _title_and_attacks(one) <= _title_and_attacks(told)]
    return "\n\n".join([*filter(None, [head]), *kept, told])


def evaluations_in(text: str) -> str:
    """What a description says of evaluations, to be put after another one."""
    return "".join(f"\n\n{section}" for section in _sections(text)[1:])


def _sections(text: str) -> list[str]:
    """What comes before all evaluations, and what is said of each."""
    head, *sections = f"\n\n{text}".split(f"\n\n{_SECTION}")
    return [head.removeprefix("\n\n"), *(f"{_SECTION}{one}" for one in sections)]


def _title_and_attacks(section: str) -> set[str]:
    title, *lines = section.splitlines()
    return {title, *(line.split("|")[1] for line in lines if line.startswith("| "))}
