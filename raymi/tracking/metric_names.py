"""Names of evaluations and their metrics in MLflow."""

from __future__ import annotations

import math

from raymi.evaluation.protocol import as_metric, threat_name
from raymi.evaluation.report import Report

PROTOCOL_TAG = "raymi.eval.question."
"""Prefix of a tag of logged models, followed by the hash of an evaluation protocol; the value is
the prefix of its metrics."""

ROBUST = "test/robust_acc"
"""Robust accuracy on test images at the end of training, under any attack: a column for all runs.
The metric with the attack in its name has the same value."""

BEST_VAL = "val/best_robust_acc"
"""Highest robust accuracy on validation images so far, by which models are chosen."""

AUTOATTACK = "test/autoattack_acc"
"""Accuracy under AutoAttack on the test images and in the threat model of the training."""

DOUBTFUL = "doubtful_checks"
"""Number of an evaluation's checks that show signs of false robustness, after its prefix."""

_DIGITS = 5


def rounded(value: float) -> float:
    """Returns a metric with 5 significant digits; MLflow's UI shows all digits that it has.

    Numbers from 100,000, which are counts and sizes, become whole ones.
    """
    value = float(value)
    if not math.isfinite(value) or value.is_integer():
        return value
    return float(f"{value:.{_DIGITS}g}") if abs(value) < 10**_DIGITS else float(round(value))


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
