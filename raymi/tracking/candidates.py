"""Logged models as candidates: what MLflow knows of their accuracies."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from raymi.errors import UserError, did_you_mean
from raymi.evaluation.protocol import threat_name
from raymi.selection.candidate import CLEAN, Candidate, Protocol
from raymi.statistics import Number, with_interval
from raymi.tracking.metric_names import QUESTION
from raymi.tracking.store import has_model

_EVALUATED = re.compile(r"(?P<prefix>eval/[^/]+/(?P<threat>[^/]+)/(?:[^/]+/)?)(?P<key>[^/]+)")
_DOUBTFUL = "doubtful_checks"
PAGE_SIZE = 100
"""Logged models requested from the store at a time."""


def find_candidates(
    client: Any, experiment: str, sweep: str | None = None, runs: Sequence[str] = ()
) -> list[Candidate]:
    """The logged models of an experiment, each as a candidate for each question that it has numbers
    of.

    Args: client; experiment, its name; sweep, runs: only the models of these.
    Raises: UserError with what there is, where there is no such experiment, sweep or run, or none
        of their models was measured; whatever MLflow raises where the store does not answer.
    """
    place = _experiment(client, experiment)
    by_id = {run.info.run_id: run for run in _pages(client.search_runs, place)}
    wanted = {key for key, run in by_id.items() if _is_wanted(run, sweep, runs)}
    _check_names(by_id.values(), sweep, runs)
    found = []
    for model in _pages(client.search_logged_models, place):
        run = by_id.get(model.source_run_id)
        if model.source_run_id and run is None:  # somebody deleted it
            continue
        if model.source_run_id in wanted or not (sweep or runs):
            found += list(of_model(model, run))
    if not found:
        raise UserError(
            f"no model in the MLflow experiment {experiment!r} has accuracies"
            + (" of this sweep or run" if sweep or runs else "")
            + ": train one to its end (python -m raymi.train), or measure it (python -m "
            "raymi.evaluate model=models:/NAME/VERSION)"
        )
    return found


def candidates_of(client: Any, model_id: str) -> list[Candidate]:
    """One logged model, as a candidate for each question that it has numbers of; empty where
    somebody deleted it.

    Raises: whatever MLflow raises where the store does not answer.
    """
    if not has_model(client, model_id):
        return []
    model = client.get_logged_model(model_id)
    run = client.get_run(model.source_run_id) if model.source_run_id else None
    return list(of_model(model, run))


def _experiment(client: Any, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        there = [one.name for one in client.search_experiments()]
        raise UserError(f"no MLflow experiment {name!r}: {did_you_mean(name, there)}")
    return experiment.experiment_id


def _pages(search: Callable[..., Any], experiment: str) -> Iterator[Any]:
    """All that a search of an experiment finds."""
    token: str | None = None
    while True:
        page = search([experiment], max_results=PAGE_SIZE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _is_wanted(run: Any, sweep: str | None, runs: Sequence[str]) -> bool:
    if sweep is not None and run.data.tags.get("raymi.sweep") != sweep:
        return False
    return not runs or run.info.run_name in runs or run.info.run_id in runs


def _check_names(there: Iterable[Any], sweep: str | None, runs: Sequence[str]) -> None:
    everyone = list(there)
    sweeps = sorted({run.data.tags.get("raymi.sweep", "") for run in everyone} - {""})
    if sweep is not None and sweep not in sweeps:
        known = did_you_mean(sweep, sweeps) if sweeps else "the experiment has none"
        raise UserError(f"no sweep {sweep!r} in MLflow: {known}")
    names = {run.info.run_name for run in everyone}
    ids = {run.info.run_id for run in everyone}
    for wanted in runs:
        if wanted not in names | ids:
            known = did_you_mean(wanted, sorted(names)) if names else "the experiment has none"
            raise UserError(f"no run {wanted!r} in MLflow: {known}")


def of_model(model: Any, run: Any) -> Iterator[Candidate]:
    """A candidate for each question that a logged model has numbers of.

    Args: model, MLflow's entity; run, that logged it, None: none did.
    """
    values: dict[tuple[str, str, str, str, bool], dict[str, float]] = defaultdict(dict)
    doubtful = set()
    for metric in sorted(model.metrics or (), key=lambda one: (one.timestamp, one.step)):
        images = (metric.dataset_name or "", metric.dataset_digest or "")
        if match := _EVALUATED.fullmatch(metric.key):
            values[(*images, match["threat"], match["prefix"], False)][match["key"]] = metric.value
            if match["key"] == _DOUBTFUL and metric.value > 0:
                doubtful.add(match["prefix"])
        elif metric.key.startswith("test/") and run is not None and metric.dataset_digest:
            threat = _threat_of(run.data.params)
            if threat is None:  # somebody else's run
                continue
            key = _of_training(metric.key.removeprefix("test/"), run.data.params)
            values[(*images, threat, "test/", True)][key] = metric.value
    doubts = "; ".join(dict.fromkeys(_doubts(model.tags, doubtful)))
    name = model.name if run is None else f"{run.info.run_name}/{model.name}"
    for (data, digest, threat, _, of_training), told in values.items():
        num = int(told.get("num", 0))
        if num == 0:  # without it, nobody knows how sure the accuracies are
            continue
        numbers = _numbers(told, num)
        if CLEAN not in numbers or len(numbers) == 1:
            continue
        yield Candidate(
            name,
            model.model_id,
            model.source_run_id or None,
            Protocol(data, digest, num, threat, of_training),
            numbers,
            doubts,
            tuple(tag.removeprefix(QUESTION) for tag in model.tags if tag.startswith(QUESTION)),
        )


def _doubts(tags: Mapping[str, str], doubtful: set[str]) -> Iterator[str]:
    for prefix in sorted(doubtful):
        checks = tags.get(f"{prefix}false_robustness")
        yield checks or f"signs of false robustness in {prefix.rstrip('/')}"


def _threat_of(params: Mapping[str, str]) -> str | None:
    """The threat that a run of raymi was evaluated under; None of another run."""
    if not {"attack.norm", "attack.eps"} <= set(params):
        return None
    try:
        return threat_name(params["attack.norm"], float(params["attack.eps"]))
    except ValueError:
        return None


def _of_training(key: str, params: Mapping[str, str]) -> str:
    """The name of a number that was measured at the end of a training: by an attack of its own,
    with other starts than those of `raymi.evaluate`, and with the step size of the run."""
    match = re.fullmatch(r"pgd(\d+)_acc", key)
    if match is None:
        return key
    alpha = params.get("evaluation.alpha", "None")
    step_size = "" if alpha == "None" else f"-alpha-{alpha}"
    return f"pgd-{match[1]}-of-training{step_size}_acc"


def _numbers(told: Mapping[str, float], num: int) -> dict[str, Number]:
    """Clean accuracy first."""
    found = {}
    for key, value in told.items():
        name, _, kind = key.rpartition("_")
        if kind != "acc" or not 0 <= value <= 1:  # not so by raymi
            continue
        bounds = told.get(f"{name}_low95"), told.get(f"{name}_high95")
        low, high = bounds
        if low is None or high is None:
            found[name] = with_interval(value, num)
        else:
            found[name] = Number(value, low, high)
    return {k: found[k] for k in sorted(found, key=lambda name: (name != CLEAN, name))}
