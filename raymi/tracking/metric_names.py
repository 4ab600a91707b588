"""Names of evaluations and their metrics in MLflow."""

from __future__ import annotations

from raymi.evaluation.protocol import as_metric, threat_name
from raymi.evaluation.report import Report

PROTOCOL_TAG = "raymi.eval.question."
"""Prefix of a tag of runs and models, followed by the hash of an evaluation protocol; the value is
the prefix of its metrics."""


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
