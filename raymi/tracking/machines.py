"""How busy a run's machines are, as the system metrics of MLflow's UI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raymi.runs.journal import JournalReader

Told = dict[str, list[int]]
"""By a machine's number how far its log was delivered, in bytes and in records."""

_RECORDS_AT_ONCE = 20  # MLflow takes 1000 metrics at once, and eight GPUs have 32 in a record


def send_records(
    client: Any, run_id: str, logs: Mapping[int, Path], told: Told, began: int
) -> Told:
    """Delivers the records that machines have written since.

    Args:
        logs: see `RunFolder.machine_logs`.
        told: progress of the delivery so far.
        began: start of the run, in milliseconds since the epoch: clocks of machines differ, and no
            record is before it.

    Returns:
        What is delivered then.

    Raises:
        Exception: any error of MLflow; what is sent again is not there twice.
    """
    told = dict(told)
    for machine, log in logs.items():
        offset, sent = told.get(str(machine), [0, 0])
        reader = JournalReader(log, offset)
        new = list(enumerate(reader.new_events(), start=sent + 1))
        records = [(number, one) for number, one in new if {"time", "metrics"} <= one.keys()]
        for first in range(0, len(records), _RECORDS_AT_ONCE):
            some = records[first : first + _RECORDS_AT_ONCE]
            client.log_batch(run_id, metrics=list(_metrics(machine, some, began)))
        told[str(machine)] = [reader.offset, sent + len(new)]
    return told


def all_told(logs: Mapping[int, Path], told: Told) -> bool:
    """Whether machines have recorded nothing since."""
    offsets = {machine: told.get(str(machine), [0, 0])[0] for machine in logs}
    return not any(JournalReader(log, offsets[m]).new_events() for m, log in logs.items())


def _metrics(
    machine: int, records: Sequence[tuple[int, dict[str, Any]]], began: int
) -> Iterator[Any]:
    """Yields metrics under MLflow's own names; of further machines, with their numbers."""
    from mlflow.entities import Metric

    prefix = "system/" if machine == 0 else f"system/node_{machine}/"
    for number, record in records:
        when = max(int(1000 * record["time"]), began)
        for name, value in record["metrics"].items():
            yield Metric(f"{prefix}{name}", float(value), when, number)
