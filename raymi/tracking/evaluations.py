"""Evaluations in MLflow: on the run that trained the classifier, and on its logged model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymi.evaluation.finding import Finding, in_short
from raymi.evaluation.question import name_of, threat_name
from raymi.evaluation.report import Report
from raymi.tracking import store
from raymi.tracking.datasets import DataSet, link_datasets

_LONGEST_PART = 100
"""Of a metric's name, which has at most 250 characters."""


@dataclass(frozen=True)
class Place:
    """Where an evaluation is told: the store's address; the run and the logged model that it
    belongs to, None where MLflow knows none; which of the run's models it is, where that is not the
    chosen one."""

    uri: str
    run_id: str | None = None
    model_id: str | None = None
    which: str | None = None


def log_evaluation(
    report: Report, place: Place, *, experiment: str, home: Path, files: list[Path]
) -> str:
    """Tells MLflow of an evaluation, once: given again, what is new in it is added.

    Accuracies and their intervals become metrics `eval/DATA/THREAT/ATTACK_acc`, `_low95`, `_high95`
    of the run and of the logged model, linked to the data set; signs of false robustness become
    tags.

    Args:
        place: without a run, or where somebody deleted it, one is made in `experiment`.
        home: of a local store that has to be made.
        files: that are kept as artifacts of the run.
    Returns: the id of the run.
    Raises: whatever MLflow raises where the store does not answer.
    """
    client = store.connect(place.uri)
    key = name_of(report.question)
    run_id = place.run_id if store.has_run(client, place.run_id) else None
    model_id = place.model_id if store.has_model(client, place.model_id) else None
    own = run_id is None
    run_id = run_id or _own_run(client, report, key, experiment, home)
    said = f"raymi.eval.{key}"
    told = client.get_run(run_id).data.tags.get(said, "").split(",")
    names = list(_names(report))
    if set(names) <= set(told):
        return run_id
    images = DataSet(report.data, report.question["images"], "eval")
    (dataset,) = link_datasets(client, run_id, [images])
    prefix = metric_prefix(report, place.which)
    for metric, value in _metrics(report, prefix, told):
        client.log_metric(  # of the run, and of its model where there is one
            run_id,
            metric,
            value,
            model_id=model_id,
            dataset_name=dataset.name,
            dataset_digest=dataset.digest,
        )
    tags = {tag: store.as_tag(text) for tag, text in _tags(report, key, prefix)}
    if model_id is not None:
        client.set_logged_model_tags(model_id, tags)
    for tag, text in tags.items():
        client.set_tag(run_id, tag, text)
    folder = f"evaluations/{report.name}-{key}"
    if set(told) - {"", *names}:  # of other attacks: what was said of them stays
        folder += f"-{_digits(','.join(names))}"
    client.log_text(run_id, json.dumps(report.as_json(), indent=2), f"{folder}/report.json")
    for file in files:
        client.log_artifact(run_id, str(file), folder)
    if own:
        client.set_terminated(run_id, "FINISHED")
    everything = ",".join(filter(None, dict.fromkeys([*told, *names])))
    client.set_tag(run_id, said, everything[: store.LONGEST_TAG])  # last: all the rest is there
    return run_id


def metric_prefix(report: Report, which: str | None = None) -> str:
    """Such as `eval/cifar10-test/linf_8_255/`, and `last/` after it for a model that was not
    chosen: numbers of other images, threats, or models of a run never share a name."""
    threat = report.question["threat"]
    parts = ["eval", as_metric(report.data), threat_name(threat["norm"], threat["eps"])]
    if which is not None:
        parts.append(as_metric(which))
    return "".join(f"{part}/" for part in parts)


def _metrics(report: Report, prefix: str, told: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Those of which nothing was told before."""
    for result in report.results:
        if result.name in told:
            continue
        name = as_metric(result.name)
        low, high = result.interval
        yield f"{prefix}{name}_acc", result.accuracy
        yield f"{prefix}{name}_low95", low
        yield f"{prefix}{name}_high95", high
    if report.results[0].name not in told:
        yield f"{prefix}num", float(report.results[0].num)
    if not {_name_of_finding(finding) for finding in report.findings} <= set(told):
        yield f"{prefix}doubtful_checks", float(len(report.suspicions))


def _tags(report: Report, key: str, prefix: str) -> Iterator[tuple[str, str]]:
    doubtful = "; ".join(finding.check for finding in report.suspicions)
    if report.findings:
        yield f"{prefix}false_robustness", doubtful or in_short(report.findings)
    for finding in report.findings:
        said = "doubtful" if finding.suspicious else "ok" if finding.conclusive else "cannot tell"
        yield f"{prefix}check/{as_metric(finding.check)}", f"{said}: {finding.text}"
    yield "raymi.eval.question", key


def _names(report: Report) -> Iterator[str]:
    """Of all that a report says: what has a name in MLflow already is not told again."""
    yield from (result.name for result in report.results)
    yield from map(_name_of_finding, report.findings)


def _name_of_finding(finding: Finding) -> str:
    """Another one where something else was found."""
    return f"{finding.check} {finding.suspicious} {finding.conclusive}"


def as_metric(name: str) -> str:
    """A name as MLflow takes it in a metric's name, with a number where it had to be cut."""
    text = re.sub(r"[^\w.\-]", "_", name, flags=re.ASCII)
    return text if len(text) <= _LONGEST_PART else f"{text[: _LONGEST_PART - 9]}-{_digits(name)}"


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _own_run(client: Any, report: Report, key: str, experiment: str, home: Path) -> str:
    """The run of an evaluation whose classifier was not trained under MLflow's eyes."""
    place = store.experiment_id(client, experiment, home)
    tags = {"raymi.eval.question": key, "raymi.eval.model": report.question["model"]}
    # The run of a training may have answered the same question; only our own names the model.
    ours = " and ".join(f"tags.`{tag}` = '{text}'" for tag, text in tags.items())
    if found := client.search_runs([place], ours, max_results=1):
        return found[0].info.run_id
    return client.create_run(place, run_name=f"evaluation of {report.name}", tags=tags).info.run_id
