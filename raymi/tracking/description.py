"""What a reader of MLflow sees first on a run: how to repeat it, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raymi.config import Config
from raymi.display.summary import result_table, result_title
from raymi.display.threat import threat_text
from raymi.evaluation.finding import in_short
from raymi.evaluation.report import Report

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
    parts = [f"```\n{about.get('command', '')}\n```"]
    if evaluations:
        parts += [result_title(config, evaluations), as_markdown(result_table(evaluations))]
    return "\n\n".join(parts)


def describe_evaluation(report: Report, command: str) -> str:
    """Markdown: what an evaluation found, and the command that repeats it."""
    threat = threat_text(**report.question["threat"])
    where = f"{report.num} images of {report.data}, {threat}"
    rows = [("attack", "accuracy", "95% interval")]
    for result in report.results:
        low, high = result.interval
        interval = f"{100 * low:.1f}-{100 * high:.1f}%"
        rows.append((result.name, f"{100 * result.accuracy:.1f}%", interval))
    parts = [f"{_SECTION}{report.name}: {where}", as_markdown(rows)]
    if report.findings:
        parts.append(f"Signs of false robustness: {in_short(report.findings)}")
    return "\n\n".join([*parts, f"```\n{command}\n```"])


def with_evaluation(text: str, told: str) -> str:
    """A run's description with what `describe_evaluation` says, in the place of what it said of
    the same images and threat before."""
    parts = text.split(f"\n\n{_SECTION}")
    title = told.partition("\n")[0]
    kept = [part for part in parts[1:] if f"{_SECTION}{part}".partition("\n")[0] != title]
    return "\n\n".join([parts[0], *(f"{_SECTION}{part}" for part in kept), told])


def evaluations_in(text: str) -> str:
    """What a description says of evaluations, to be put after another one."""
    _, mark, rest = text.partition(f"\n\n{_SECTION}")
    return mark + rest


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, whose first row is the header."""
    header, *others = rows
    lines = [header, ["---"] * len(header), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
