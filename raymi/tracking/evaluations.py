"""Evaluations in MLflow: on the run that trained the classifier, and on its logged model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymi.evaluation.question import name_of
from raymi.evaluation.report import Report
from raymi.overrides import as_typed
from raymi.tracking import store


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
    report: Report, place: Place, *, experiment: str, home: Path, data_name: str, files: list[Path]
) -> str:
    """Tells MLflow of an evaluation, once: given again, nothing is added.

    Accuracies with their intervals become metrics `eval/THREAT/ATTACK_acc`, `_low95`, `_high95` of
    the run and of the logged model, linked to the data set; signs of false robustness become tags.

    Args:
        place: without a run, one is made in `experiment`.
        home: of a local store that has to be made.
        data_name: such as "cifar10-test".
        files: that are kept as artifacts of the run.
    Returns: the id of the run.
    Raises: whatever MLflow raises where the store does not answer.
    """
    client = store.connect(place.uri)
    key = name_of(report.question)
    run_id = place.run_id or _own_run(client, report, key, experiment, home)
    tags = dict(_tags(report, key))
    said = f"raymi.eval.{key}"
    content = json.dumps(report.as_json(), indent=2)
    results = ",".join(result.name for result in report.results)
    if client.get_run(run_id).data.tags.get(said) == results:
        return run_id
    dataset = _link_dataset(client, run_id, report, data_name)
    for metric, value in _metrics(report, metric_prefix(report, place.which)):
        client.log_metric(  # of the run, and of its model where there is one
            run_id,
            metric,
            value,
            model_id=place.model_id,
            dataset_name=dataset.name,
            dataset_digest=dataset.digest,
        )
    if place.model_id is not None:
        client.set_logged_model_tags(place.model_id, tags)
    for tag, text in tags.items():
        client.set_tag(run_id, tag, text)
    folder = f"evaluations/{report.name}-{key}"
    client.log_text(run_id, content, f"{folder}/report.json")
    for file in files:
        client.log_artifact(run_id, str(file), folder)
    client.set_tag(run_id, said, results)  # last: all the rest is there
    if place.run_id is None:
        client.set_terminated(run_id, "FINISHED")
    return run_id


def metric_prefix(report: Report, which: str | None = None) -> str:
    """Such as `eval/linf_8_255/`, or `eval/linf_8_255/last/` for a model that was not chosen:
    numbers of different threats, or models of a run, never share a name."""
    threat = report.question["threat"]
    parts = ["eval", f"{threat['norm']}_{as_typed(threat['eps']).replace('/', '_')}", which]
    return "".join(f"{part}/" for part in parts if part)


def _metrics(report: Report, prefix: str) -> Iterator[tuple[str, float]]:
    for result in report.results:
        name = re.sub(r"[^\w.\- /]", "_", result.name)  # what MLflow takes
        low, high = result.interval
        yield f"{prefix}{name}_acc", result.accuracy
        yield f"{prefix}{name}_low95", low
        yield f"{prefix}{name}_high95", high
    yield f"{prefix}num", float(report.results[0].num)
    if report.findings:
        yield f"{prefix}doubtful_checks", float(len(report.suspicions))


def _tags(report: Report, key: str) -> Iterator[tuple[str, str]]:
    doubtful = "; ".join(finding.check for finding in report.suspicions)
    if report.findings:
        yield "raymi.false_robustness", doubtful or f"no sign in {len(report.findings)} checks"
    for finding in report.findings:
        slug = finding.check.replace(" ", "_")
        yield f"raymi.check.{slug}", f"{'doubtful' if finding.suspicious else 'ok'}: {finding.text}"
    yield "raymi.eval.question", key


def _link_dataset(client: Any, run_id: str, report: Report, data_name: str) -> Any:
    """The data set as an input of the run; the one that is there stays."""
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    source = HTTPDatasetSource(url=f"raymi:{data_name}")
    digest = report.question["images"][:32]
    dataset = MetaDataset(source, name=data_name, digest=digest)._to_mlflow_entity()
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "eval")])])
    return dataset


def _own_run(client: Any, report: Report, key: str, experiment: str, home: Path) -> str:
    """The run of an evaluation whose classifier was not trained under MLflow's eyes."""
    place = store.experiment_id(client, experiment, home)
    found = client.search_runs([place], f"tags.`raymi.eval.question` = '{key}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {"raymi.eval.question": key, "raymi.eval.model": report.question["model"]}
    return client.create_run(place, run_name=f"evaluation of {report.name}", tags=tags).info.run_id
