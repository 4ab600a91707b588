"""Evaluations in MLflow: metrics of the training run, metrics and tags of the logged model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymi.evaluation.finding import Finding, in_short
from raymi.evaluation.protocol import as_metric, protocol_hash, short_hash, threat_name
from raymi.evaluation.report import Report
from raymi.formatting import threat_text
from raymi.tracking import store
from raymi.tracking.candidates import threat_of_run
from raymi.tracking.datasets import DataSet, link_datasets
from raymi.tracking.description import NOTE, evaluation_section, with_evaluation
from raymi.tracking.metric_names import (
    AUTOATTACK,
    DOUBTFUL,
    PROTOCOL_TAG,
    metric_prefix,
    rounded,
)
from raymi.tracking.mlflow_run import RUN_ID
from raymi.tracking.model_card import write_card
from raymi.tracking.stale_runs import close_stale_runs


@dataclass(frozen=True)
class LoggedModelRef:
    """Evaluated model in MLflow.

    Attributes:
        uri: of the store.
        run_id: of the run that trained it; None: MLflow has none.
        model_id: of the logged model; None: MLflow has none.
        variant: its name in its run; None: the chosen model.
    """

    uri: str
    run_id: str | None = None
    model_id: str | None = None
    variant: str | None = None


def log_evaluation(
    report: Report,
    model: LoggedModelRef,
    *,
    command: str,
    experiment: str,
    home: Path,
    files: list[Path],
) -> str:
    """Logs an evaluation to MLflow; a repeated call adds only new results.

    Accuracies and their intervals, without details of means, become metrics
    `eval/DATA/THREAT/ATTACK_acc`, `_low95`, `_high95` of the run and of the logged model, linked to
    the data set; checks become tags of the model, and the run's tag `raymi.doubtful`. The
    description of the run and the model's card are updated.

    Args:
        report: of the evaluation.
        model: that was evaluated. Without a run, or if it was deleted, a run of the evaluation is
            created in `experiment`.
        command: that repeats the evaluation.
        experiment: its name.
        home: folder of a local store.
        files: artifacts of the run.

    Returns:
        The id of the run.

    Raises:
        Exception: any error of MLflow where the store does not answer.
    """
    client = store.connect(model.uri)
    key = protocol_hash(report.protocol)
    run_id = model.run_id if store.has_run(client, model.run_id) else None
    model_id = model.model_id if store.has_model(client, model.model_id) else None
    is_separate = run_id is None
    run_id = run_id or _evaluation_run(client, report, key, experiment, home)
    with suppress(Exception):  # of other runs; this evaluation is logged
        close_stale_runs(client, client.get_run(run_id).info.experiment_id)
    progress_tag = f"mlflow.raymi.eval.{key}"  # hidden in the UI
    logged = client.get_run(run_id).data.tags.get(progress_tag, "").split(",")
    names = list(_result_names(report))
    if set(names) <= set(logged):
        return run_id
    images = DataSet(report.data, report.protocol["images"], "eval")
    (dataset,) = link_datasets(client, run_id, [images])
    prefix = metric_prefix(report, model.variant)
    step, when = _epoch_of(client, model_id), _attempt_time(client, run_id, progress_tag, logged)
    for metric, value in _new_metrics(report, prefix, logged):
        if metric == f"{prefix}autoattack_acc" and _is_of_training(client, run_id, report, model):
            client.log_metric(run_id, AUTOATTACK, value, timestamp=when, step=step)
        client.log_metric(  # of the run, and of its model if there is one
            run_id,
            metric,
            value,
            timestamp=when,
            step=step,
            model_id=model_id,
            dataset_name=dataset.name,
            dataset_digest=dataset.digest,
        )
    tags = {tag: store.as_tag(text) for tag, text in _tags(report, key, prefix)}
    if model_id is not None:
        client.set_logged_model_tags(model_id, tags)
    metrics = client.get_run(run_id).data.metrics
    if doubts := [value > 0 for name, value in metrics.items() if name.endswith(f"/{DOUBTFUL}")]:
        client.set_tag(run_id, "raymi.doubtful", "yes" if any(doubts) else "no")
    folder = f"evaluations/{report.name}-{key}"
    if set(logged) - {"", *names}:  # artifacts of other attacks stay
        folder += f"-{short_hash(','.join(names))}"
    client.log_text(run_id, json.dumps(report.as_json(), indent=2), f"{folder}/report.json")
    for file in files:
        client.log_artifact(run_id, str(file), folder)
    note = client.get_run(run_id).data.tags.get(NOTE, "")
    note = with_evaluation(note, evaluation_section(report, command))
    client.set_tag(run_id, NOTE, store.as_tag(note))
    if model_id is not None:
        write_card(client, model_id)
    if is_separate:
        store.end_run(client, run_id, "FINISHED")
    all_names = ",".join(filter(None, dict.fromkeys([*logged, *names])))
    client.set_tag(run_id, progress_tag, all_names[: store.LONGEST_TAG])  # last: all is logged
    return run_id


def _is_of_training(client: Any, run_id: str, report: Report, model: LoggedModelRef) -> bool:
    """Returns whether the report is on the chosen model, test images and threat of a training."""
    run = client.get_run(run_id)
    threat = report.protocol["threat"]
    tests = {
        one.dataset.name
        for one in run.inputs.dataset_inputs
        if any((tag.key, tag.value) == ("mlflow.data.context", "test") for tag in one.tags)
    }
    of_threat = threat_of_run(run.data.params) == threat_name(threat["norm"], threat["eps"])
    return model.variant is None and report.data in tests and of_threat


def _attempt_time(client: Any, run_id: str, progress_tag: str, logged: Sequence[str]) -> int:
    """Returns the time of the metrics in milliseconds: the start of the first attempt.

    MLflow stores a point with the same time only once.
    """
    tag, suffix = f"{progress_tag}.began", f" after {len(logged)}"
    began = client.get_run(run_id).data.tags.get(tag, "")
    if not began.endswith(suffix):  # the first attempt, or one after a complete one
        began = f"{int(1000 * time.time())}{suffix}"
        client.set_tag(run_id, tag, began)
    return int(began.removesuffix(suffix))


def _epoch_of(client: Any, model_id: str | None) -> int:
    """Returns the step of the accuracies from the model's training; 0 without any."""
    if model_id is None:
        return 0
    metrics = client.get_logged_model(model_id).metrics or ()
    return max((one.step for one in metrics if one.key.startswith("test/")), default=0)


def _new_metrics(report: Report, prefix: str, logged: Sequence[str]) -> Iterator[tuple[str, float]]:
    for result in report.results:
        if result.name in logged or result.detail:
            continue
        name = as_metric(result.name)
        low, high = map(rounded, result.interval)
        yield f"{prefix}{name}_acc", rounded(result.accuracy)
        yield f"{prefix}{name}_low95", low
        yield f"{prefix}{name}_high95", high
    if report.results[0].name not in logged:
        yield f"{prefix}num", float(report.results[0].num)
    if not set(map(_finding_name, report.findings)) <= set(logged):
        yield f"{prefix}{DOUBTFUL}", float(len(report.suspicions))


def _tags(report: Report, key: str, prefix: str) -> Iterator[tuple[str, str]]:
    doubtful = "; ".join(finding.check for finding in report.suspicions)
    if report.findings:
        yield f"{prefix}false_robustness", doubtful or in_short(report.findings)
    for finding in report.findings:
        state = "doubtful" if finding.suspicious else "ok" if finding.conclusive else "cannot tell"
        yield f"{prefix}check/{as_metric(finding.check)}", f"{state}: {finding.text}"
    yield f"{PROTOCOL_TAG}{key}", prefix


def _result_names(report: Report) -> Iterator[str]:
    """Yields names of results and findings, by which logged ones are recognised."""
    yield from (result.name for result in report.results)
    yield from map(_finding_name, report.findings)


def _finding_name(finding: Finding) -> str:
    return f"{finding.check} {finding.suspicious} {finding.conclusive}"


def _evaluation_run(client: Any, report: Report, key: str, experiment: str, home: Path) -> str:
    """Returns the run of an evaluation whose classifier has no run in MLflow."""
    experiment_id = store.experiment_id(client, experiment, home)
    own_id = f"{key}-{report.protocol['model']}"
    if runs := client.search_runs([experiment_id], f"tags.`{RUN_ID}` = '{own_id}'", max_results=1):
        return runs[0].info.run_id
    tags = {RUN_ID: own_id, "raymi.data": report.data}
    tags["raymi.threat"] = threat_text(**report.protocol["threat"])
    run = client.create_run(experiment_id, run_name=f"evaluation of {report.name}", tags=tags)
    # If this process is killed, the run must not stay RUNNING: it has all numbers.
    store.end_run(client, run.info.run_id, "KILLED")
    return run.info.run_id
