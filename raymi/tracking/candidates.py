"""Logged models of MLflow as candidates of a selection, with their accuracies."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymi.errors import UserError, did_you_mean
from raymi.evaluation.protocol import threat_name
from raymi.selection.candidate import CLEAN, Candidate, Protocol
from raymi.statistics import Number, with_interval
from raymi.tracking.metric_names import DOUBTFUL, PROTOCOL_TAG, ROBUST
from raymi.tracking.store import all_pages

_EVALUATED = re.compile(r"(?P<prefix>eval/[^/]+/(?P<threat>[^/]+)/(?:[^/]+/)?)(?P<key>[^/]+)")
PARENT = "mlflow.parentRunId"
"""Tag of a trial with the id of the sweep's run; MLflow's UI shows trials below it."""


def find_candidates(
    client: Any, experiment: str, sweep: str | None = None, runs: Sequence[str] = ()
) -> list[Candidate]:
    """Returns the logged models of an experiment, one candidate for each protocol of a model.

    Args:
        client: of the store.
        experiment: its name.
        sweep: name of a sweep, to which models are restricted; None: all models.
        runs: names or ids of runs, to which models are restricted; empty: all models.

    Raises:
        UserError: where experiment, sweep or run is unknown, or no model was measured.
        Exception: any error of MLflow where the store does not answer.
    """
    experiment_id = _experiment_id(client, experiment)
    by_id = {run.info.run_id: run for run in all_pages(client.search_runs, experiment_id)}
    _check_names(list(by_id.values()), sweep, runs)
    candidates = []
    for model in all_pages(client.search_logged_models, experiment_id):
        run = by_id.get(model.source_run_id)
        if model.source_run_id and run is None:  # deleted
            continue
        if not (sweep or runs) or (run is not None and _matches(run, by_id, sweep, runs)):
            candidates += list(candidates_of_model(model, run))
    if not candidates:
        raise UserError(
            f"no model in the MLflow experiment {experiment!r} has accuracies"
            + (" of this sweep or run" if sweep or runs else "")
            + ": train one to its end (python -m raymi.train), or measure it (python -m "
            "raymi.evaluate model=models:/NAME/VERSION)"
        )
    return candidates


def _experiment_id(client: Any, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        known = [one.name for one in client.search_experiments()]
        raise UserError(f"no MLflow experiment {name!r}: {did_you_mean(name, known)}")
    return experiment.experiment_id


def _sweep_of(run: Any, by_id: Mapping[str, Any]) -> str | None:
    """Returns the name of a run's sweep; None: the run is no trial."""
    sweep = by_id.get(run.data.tags.get(PARENT, ""))
    return None if sweep is None else str(sweep.info.run_name)


def _matches(run: Any, by_id: Mapping[str, Any], sweep: str | None, runs: Sequence[str]) -> bool:
    if sweep is not None and _sweep_of(run, by_id) != sweep:
        return False
    return not runs or run.info.run_name in runs or run.info.run_id in runs


def _check_names(runs: Sequence[Any], sweep: str | None, requested: Sequence[str]) -> None:
    by_id = {run.info.run_id: run for run in runs}
    sweeps = {name for run in runs if (name := _sweep_of(run, by_id)) is not None}
    names = {run.info.run_name for run in runs}
    checks = [("sweep", sweep, sweeps, sweeps)] if sweep is not None else []
    checks += [("run", name, names, names | by_id.keys()) for name in requested]
    for kind, name, shown, known in checks:
        if name not in known:
            remedy = did_you_mean(name, sorted(shown)) if shown else "the experiment has none"
            raise UserError(f"no {kind} {name!r} in MLflow: {remedy}")


def candidates_of_model(model: Any, run: Any) -> Iterator[Candidate]:
    """Yields a candidate for each protocol under which a logged model was measured.

    Args:
        model: MLflow's entity.
        run: MLflow's entity of the run that logged it; None: logged outside of a run.
    """
    values: dict[tuple[str, str, str, str, bool], dict[str, float]] = defaultdict(dict)
    doubtful = set()
    for metric in sorted(model.metrics or (), key=lambda one: (one.timestamp, one.step)):
        images = (metric.dataset_name or "", metric.dataset_digest or "")
        if match := _EVALUATED.fullmatch(metric.key):
            values[(*images, match["threat"], match["prefix"], False)][match["key"]] = metric.value
            if match["key"] == DOUBTFUL and metric.value > 0:
                doubtful.add(match["prefix"])
        elif metric.key == ROBUST:  # that of the attack is beside it
            continue
        elif metric.key.startswith("test/") and run is not None and metric.dataset_digest:
            threat = threat_of_run(run.data.params)
            if threat is None:  # a run of another program
                continue
            key = _training_key(metric.key.removeprefix("test/"), run.data.params)
            values[(*images, threat, "test/", True)][key] = metric.value
    doubts = "; ".join(dict.fromkeys(_doubts(model.tags, doubtful)))
    name = model.name if run is None else f"{run.info.run_name}/{model.name}"
    for (data, digest, threat, _, of_training), metrics in values.items():
        num = int(metrics.get("num", 0))
        if num == 0:  # accuracies without intervals
            continue
        numbers = _accuracies(metrics, num)
        if CLEAN not in numbers or len(numbers) == 1:
            continue
        yield Candidate(
            name,
            model.model_id,
            model.source_run_id or None,
            Protocol(data, digest, num, threat, of_training),
            numbers,
            doubts,
            tuple(
                tag.removeprefix(PROTOCOL_TAG) for tag in model.tags if tag.startswith(PROTOCOL_TAG)
            ),
        )


def _doubts(tags: Mapping[str, str], prefixes: set[str]) -> Iterator[str]:
    for prefix in sorted(prefixes):
        checks = tags.get(f"{prefix}false_robustness")
        yield checks or f"signs of false robustness in {prefix.rstrip('/')}"


def threat_of_run(params: Mapping[str, str]) -> str | None:
    """Returns the threat of a run's evaluation; None for a run of another program."""
    if not {"attack.norm", "attack.eps"} <= set(params):
        return None
    try:
        return threat_name(params["attack.norm"], float(params["attack.eps"]))
    except ValueError:
        return None


def _training_key(key: str, params: Mapping[str, str]) -> str:
    """Returns the name of an accuracy from the end of a training.

    Its attack differs from the one of `raymi.evaluate` in random starts and step size.
    """
    match = re.fullmatch(r"pgd(\d+)_acc", key)
    if match is None:
        return key
    alpha = params.get("evaluation.alpha", "None")
    step_size = "" if alpha == "None" else f"-alpha-{alpha}"
    return f"pgd-{match[1]}-of-training{step_size}_acc"


def _accuracies(metrics: Mapping[str, float], num: int) -> dict[str, Number]:
    """Returns the accuracies among metrics by name, "clean" first."""
    accuracies = {}
    for key, value in metrics.items():
        name, _, kind = key.rpartition("_")
        if kind != "acc" or not 0 <= value <= 1:  # of another program
            continue
        low, high = metrics.get(f"{name}_low95"), metrics.get(f"{name}_high95")
        if low is None or high is None:
            accuracies[name] = with_interval(value, num)
        else:
            accuracies[name] = Number(value, low, high)
    return dict(sorted(accuracies.items(), key=lambda item: (item[0] != CLEAN, item[0])))
