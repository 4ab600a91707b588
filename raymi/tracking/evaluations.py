"""Evaluations in MLflow: on the run that trained the classifier, and on its logged model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymi.evaluation.finding import Finding, in_short
from raymi.evaluation.protocol import protocol_hash
from raymi.evaluation.report import Report
from raymi.tracking import store
from raymi.tracking.datasets import DataSet, link_datasets
from raymi.tracking.description import NOTE, describe_evaluation, with_evaluation
from raymi.tracking.left_running import close_left_running
from raymi.tracking.metric_names import QUESTION, as_metric, digits, metric_prefix
from raymi.tracking.model_card import write_card


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
    report: Report,
    place: Place,
    *,
    command: str,
    experiment: str,
    home: Path,
    files: list[Path],
) -> str:
    """Tells MLflow of an evaluation, once: given again, what is new in it is added.

    Accuracies and their intervals become metrics `eval/DATA/THREAT/ATTACK_acc`, `_low95`, `_high95`
    of the run and of the logged model, linked to the data set; signs of false robustness become
    tags. The description of the run and the model's card say so, too.

    Args:
        command: that repeats the evaluation.
        place: without a run, or where somebody deleted it, one is made in `experiment`.
        home: of a local store that has to be made.
        files: that are kept as artifacts of the run.
    Returns: the id of the run.
    Raises: whatever MLflow raises where the store does not answer.
    """
    client = store.connect(place.uri)
    key = protocol_hash(report.protocol)
    run_id = place.run_id if store.has_run(client, place.run_id) else None
    model_id = place.model_id if store.has_model(client, place.model_id) else None
    own = run_id is None
    run_id = run_id or _own_run(client, report, key, experiment, home)
    with suppress(Exception):  # of other runs: this is logged all the same
        close_left_running(client, client.get_run(run_id).info.experiment_id)
    said = f"raymi.eval.{key}"
    told = client.get_run(run_id).data.tags.get(said, "").split(",")
    names = list(_names(report))
    if set(names) <= set(told):
        return run_id
    images = DataSet(report.data, report.protocol["images"], "eval")
    (dataset,) = link_datasets(client, run_id, [images])
    prefix = metric_prefix(report, place.which)
    step, when = _epoch_of(client, model_id), _time_of_attempt(client, run_id, said, told)
    for metric, value in _metrics(report, prefix, told):
        client.log_metric(  # of the run, and of its model where there is one
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
    if set(told) - {"", *names}:  # of other attacks: what was said of them stays
        folder += f"-{digits(','.join(names))}"
    client.log_text(run_id, json.dumps(report.as_json(), indent=2), f"{folder}/report.json")
    for file in files:
        client.log_artifact(run_id, str(file), folder)
    note = client.get_run(run_id).data.tags.get(NOTE, "")
    note = with_evaluation(note, describe_evaluation(report, command))
    client.set_tag(run_id, NOTE, store.as_tag(note))
    if model_id is not None:
        write_card(client, model_id)
    if own:
        store.end_run(client, run_id, "FINISHED")
    everything = ",".join(filter(None, dict.fromkeys([*told, *names])))
    client.set_tag(run_id, said, everything[: store.LONGEST_TAG])  # last: all the rest is there
    return run_id


def _time_of_attempt(client: Any, run_id: str, said: str, told: Sequence[str]) -> int:
    """The time of the metrics, in milliseconds: where an attempt to tell the same was cut off, that
    of the attempt, as MLflow takes a point with the same time for the one that it has."""
    tag, after = f"{said}.began", f" after {len(told)}"
    began = client.get_run(run_id).data.tags.get(tag, "")
    if not began.endswith(after):  # none, or one that came to its end
        began = f"{int(1000 * time.time())}{after}"
        client.set_tag(run_id, tag, began)
    return int(began.removesuffix(after))


def _epoch_of(client: Any, model_id: str | None) -> int:
    """The step at which the accuracies of a model's own training are; 0 where there are none."""
    if model_id is None:
        return 0
    metrics = client.get_logged_model(model_id).metrics or ()
    return max((one.step for one in metrics if one.key.startswith("test/")), default=0)


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
    yield f"{QUESTION}{key}", prefix


def _names(report: Report) -> Iterator[str]:
    """Of all that a report says: what has a name in MLflow already is not told again."""
    yield from (result.name for result in report.results)
    yield from map(_name_of_finding, report.findings)


def _name_of_finding(finding: Finding) -> str:
    """Another one where something else was found."""
    return f"{finding.check} {finding.suspicious} {finding.conclusive}"


def _own_run(client: Any, report: Report, key: str, experiment: str, home: Path) -> str:
    """The run of an evaluation whose classifier was not trained under MLflow's eyes."""
    place = store.experiment_id(client, experiment, home)
    tags = {"raymi.eval.question": key, "raymi.eval.model": report.protocol["model"]}
    # The run of a training may have answered the same question; only our own names the model.
    ours = " and ".join(f"tags.`{tag}` = '{text}'" for tag, text in tags.items())
    if found := client.search_runs([place], ours, max_results=1):
        return found[0].info.run_id
    run = client.create_run(place, run_name=f"evaluation of {report.name}", tags=tags)
    # All numbers are there: if this process is killed, the run must not stay RUNNING.
    store.end_run(client, run.info.run_id, "KILLED")
    return run.info.run_id
