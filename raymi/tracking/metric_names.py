"""How evaluations and their numbers are called in MLflow."""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction

from raymi.evaluation.protocol import threat_name
from raymi.evaluation.report import Report

QUESTION = "raymi.eval.question."
"""Begins a tag of a run and of a model for each question that an evaluation of it has answered; its
value is the prefix of the metrics."""
_LONGEST_PART = 100
"""Of a metric's name, which has at most 250 characters."""


def metric_prefix(report: Report, which: str | None = None) -> str:
    """Such as `eval/cifar10-test/linf_8_255/`, and `last/` after it for a model that was not
    chosen: numbers of other images, threats, or models of a run never share a name."""
    threat = report.protocol["threat"]
    parts = ["eval", as_metric(report.data), threat_name(threat["norm"], threat["eps"])]
    if which is not None:
        parts.append(as_metric(which))
    return "".join(f"{part}/" for part in parts)


def threat_of(name: str) -> tuple[str, float]:
    """Norm and eps of a threat in a metric's name."""
    norm, _, eps = name.partition("_")
    return norm, float(Fraction(eps.replace("_", "/")))


def as_metric(name: str) -> str:
    """A name as MLflow takes it in a metric's name, with a number where it had to be cut."""
    text = re.sub(r"[^\w.\-]", "_", name, flags=re.ASCII)
    return text if len(text) <= _LONGEST_PART else f"{text[: _LONGEST_PART - 9]}-{digits(name)}"


def digits(text: str) -> str:
    """Eight that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
