"""Evaluations in MLflow: metrics and tags of the training run and of the logged model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymi.evaluation.finding import Finding, in_short
from raymi.evaluation.protocol import as_metric, protocol_hash, short_hash
from raymi.evaluation.report import Report
from raymi.tracking import store
from raymi.tracking.datasets import DataSet, link_datasets
from raymi.tracking.description import NOTE, evaluation_section, with_evaluation
from raymi.tracking.metric_names import PROTOCOL_TAG, metric_prefix
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
    the data set; signs of false robustness become tags. The description of the run and the
    model's card are updated.

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
    progress_tag = f"raymi.eval.{key}"
    logged = client.get_run(run_id).data.tags.get(progress_tag, "").split(",")
    names = list(_result_names(report))
    if set(names) <= set(logged):
        return run_id
    images = DataSet(report.data, report.protocol["images"], "eval")
    (dataset,) = link_datasets(client, run_id, [images])
    prefix = metric_prefix(report, model.variant)
    step, when = _epoch_of(client, model_id), _attempt_time(client, run_id, progress_tag, logged)
    for metric, value in _new_metrics(report, prefix, logged):
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
    for tag, text in tags.items():
        client.set_tag(run_id, tag, text)
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
        low, high = result.interval
        yield f"{prefix}{name}_acc", result.accuracy
        yield f"{prefix}{name}_low95", low
        yield f"{prefix}{name}_high95", high
    if report.results[0].name not in logged:
        yield f"{prefix}num", float(report.results[0].num)
    if not set(map(_finding_name, report.findings)) <= set(logged):
        yield f"{prefix}doubtful_checks", float(len(report.suspicions))


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
    tags = {"raymi.eval.question": key, "raymi.eval.model": report.protocol["model"]}
    # A training run may have the same protocol; only runs of evaluations name the model.
    condition = " and ".join(f"tags.`{tag}` = '{text}'" for tag, text in tags.items())
    if runs := client.search_runs([experiment_id], condition, max_results=1):
        return runs[0].info.run_id
    run = client.create_run(experiment_id, run_name=f"evaluation of {report.name}", tags=tags)
    # If this process is killed, the run must not stay RUNNING: it has all numbers.
    store.end_run(client, run.info.run_id, "KILLED")
    return run.info.run_id
