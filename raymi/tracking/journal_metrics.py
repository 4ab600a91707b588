"""Metrics of a run for MLflow, from its journal and from the logs of its machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raymi.runs.journal import JournalReader
from raymi.tracking.metric_names import rounded

Event = Mapping[str, Any]

LogPositions = dict[str, list[int]]
"""Bytes and records that are logged, by the number of the machine."""

_RECORDS_PER_BATCH = 20  # MLflow takes 1000 metrics, and a record of eight GPUs has 32


def event_metrics(
    event: Event, state: Mapping[str, Any]
) -> tuple[Mapping[str, Any], int, dict[str, Any]]:
    """Returns the metrics of a journal event.

    Args:
        event: of the journal.
        state: of the delivery: `step`, `epoch_step`, `best_robust`, `evaluations`, `probed`.

    Returns:
        Values by metric name, empty for a replayed event; their step; changes of the state once
        they are logged.
    """
    kind, phase, step, epoch = (event[k] for k in ("kind", "phase", "global_step", "epoch"))
    prefix = "" if phase == "classifier" else f"{phase}/"
    if kind == "step" and step > state["step"]:
        metrics = {f"{prefix}train_steps/{k}": v for k, v in event["metrics"].items()}
        return metrics, step, {"step": step}
    if kind == "epoch" and step > state["epoch_step"]:
        metrics = {f"train/{k}": v for k, v in event["train"].items()}
        metrics |= {f"val/{k}": v for k, v in event["val"].items()}
        metrics |= {k: event[k] for k in ("lr", "images_per_s")}
        changes = {"epoch_step": step}
        if (best := _best_robust(event, state)) is not None:
            metrics["val/best_robust_acc"] = changes["best_robust"] = best
        return {f"{prefix}{k}": v for k, v in metrics.items()}, epoch, changes
    if kind == "evaluation" and event["which"] not in state["evaluations"]:
        which, attack = event["which"], event["attack"]
        values = {"clean_acc": event["clean"], "robust_acc": event["robust"]}
        values[f"pgd{attack['steps']}_acc"] = event["robust"]
        metrics = {f"test/{which}/{k}": v for k, v in values.items()}
        evaluations = {**state["evaluations"], which: event}
        metrics |= _overfitting_gap(evaluations, which)
        return metrics, epoch, {"evaluations": evaluations}
    if kind == "probe" and not state["probed"]:
        metrics = {f"probe/{k}": v for k, v in event["estimates"].items()}
        return metrics, epoch, {"probed": True}
    return {}, epoch, {}


def _best_robust(event: Event, state: Mapping[str, Any]) -> float | None:
    """Returns the highest robust validation accuracy so far, by which models are chosen.

    None in other phases than the classifier's, and without validation.
    """
    if event["phase"] != "classifier":
        return None
    new = [float(v) for k, v in event["val"].items() if k in ("robust_acc", "averaged/robust_acc")]
    return max((v for v in [*new, state["best_robust"]] if v is not None), default=None)


def _overfitting_gap(evaluations: dict[str, Event], which: str) -> dict[str, float]:
    """Returns the loss of robust accuracy from the best to the last model, if both are known."""
    suffix = which.removeprefix("best")
    if not which.startswith("best") or f"last{suffix}" not in evaluations:
        return {}
    gap = evaluations[which]["robust"] - evaluations[f"last{suffix}"]["robust"]
    return {f"test/robust_overfitting_gap{suffix}": gap}


def log_machine_metrics(
    client: Any, run_id: str, logs: Mapping[int, Path], positions: LogPositions, began: int
) -> LogPositions:
    """Logs new records of machines as the system metrics of MLflow's UI.

    A record that is logged twice is one point in MLflow.

    Args:
        client: of the store.
        run_id: of the run.
        logs: see `RunFolder.machine_logs`.
        positions: in the logs so far.
        began: start of the run in milliseconds since the epoch. Clocks of machines differ; records
            get no earlier time.

    Returns:
        The new positions.

    Raises:
        Exception: any error of MLflow.
    """
    positions = dict(positions)
    for machine, log in logs.items():
        offset, logged = positions.get(str(machine), [0, 0])
        reader = JournalReader(log, offset)
        new = list(enumerate(reader.new_events(), start=logged + 1))
        records = [(number, one) for number, one in new if {"time", "metrics"} <= one.keys()]
        for first in range(0, len(records), _RECORDS_PER_BATCH):
            batch = records[first : first + _RECORDS_PER_BATCH]
            client.log_batch(run_id, metrics=list(_machine_metrics(machine, batch, began)))
        positions[str(machine)] = [reader.offset, logged + len(new)]
    return positions


def all_logged(logs: Mapping[int, Path], positions: LogPositions) -> bool:
    """Returns whether the logs of machines have no new records."""
    offsets = {machine: positions.get(str(machine), [0, 0])[0] for machine in logs}
    return not any(JournalReader(log, offsets[m]).new_events() for m, log in logs.items())


def _machine_metrics(
    machine: int, records: Sequence[tuple[int, dict[str, Any]]], began: int
) -> Iterator[Any]:
    """Yields metrics under MLflow's own names; with the number of the machine from the second."""
    from mlflow.entities import Metric

    prefix = "system/" if machine == 0 else f"system/node_{machine}/"
    for number, record in records:
        when = max(int(1000 * record["time"]), began)
        for name, value in record["metrics"].items():
            yield Metric(f"{prefix}{name}", rounded(value), when, number)
