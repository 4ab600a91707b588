"""Names of evaluations and their metrics in MLflow."""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction

from raymi.evaluation.protocol import threat_name
from raymi.evaluation.report import Report

PROTOCOL_TAG = "raymi.eval.question."
"""Prefix of a tag of runs and models, followed by the hash of an evaluation protocol; the value is
the prefix of its metrics."""

_LONGEST_PART = 100  # a metric's name has at most 250 characters


def metric_prefix(report: Report, variant: str | None = None) -> str:
    """Returns the prefix of an evaluation's metrics, such as `eval/cifar10-test/linf_8_255/`.

    Args:
        report: of the evaluation.
        variant: name of a model that was not chosen by its run, such as "last": the last part of
            the prefix. Metrics of different images, threats or models differ in name.
    """
    threat = report.protocol["threat"]
    parts = ["eval", as_metric(report.data), threat_name(threat["norm"], threat["eps"])]
    if variant is not None:
        parts.append(as_metric(variant))
    return "".join(f"{part}/" for part in parts)


def parse_threat(name: str) -> tuple[str, float]:
    """Returns norm and eps of a threat from its name, such as `linf_8_255`."""
    norm, _, eps = name.partition("_")
    return norm, float(Fraction(eps.replace("_", "/")))


def as_metric(name: str) -> str:
    """Returns a name with the characters and the length that MLflow accepts in metrics."""
    text = re.sub(r"[^\w.\-]", "_", name, flags=re.ASCII)
    return text if len(text) <= _LONGEST_PART else f"{text[: _LONGEST_PART - 9]}-{short_hash(name)}"


def short_hash(text: str) -> str:
    """Returns the first eight hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
