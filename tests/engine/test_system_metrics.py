"""System metrics of a machine, recorded without an effect on training."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest
import tiny_runs

from raymi.engine import system_metrics
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.engine.system_metrics import SystemMetrics, record_system_metrics
from raymi.runs.journal import JournalReader
from raymi.runs.run_folder import RunFolder


def records(path: Path) -> list[dict[str, float]]:
    return [event["metrics"] for event in JournalReader(path).new_events()]


def test_system_metrics_match_the_machine() -> None:
    values = SystemMetrics().read()
    assert 0 <= values["cpu_utilization_percentage"] <= 100
    assert 0 < values["system_memory_usage_percentage"] < 100
    total = psutil.virtual_memory().total / 1e6
    assert 0 < values["system_memory_usage_megabytes"] < total
    assert values["disk_available_megabytes"] > 0
    assert 0 <= values["network_receive_megabytes"] < 100, "since the gauges were made"


def test_a_busy_processor_shows_its_load() -> None:
    gauges, until = SystemMetrics(), time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    alone = 100 / (psutil.cpu_count() or 1)
    assert gauges.read()["cpu_utilization_percentage"] > 0.5 * alone


def test_records_are_written_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "machine-0.jsonl"
    since = time.monotonic()
    with record_system_metrics(path, every=0.05):
        while len(records(path)) < 3:
            time.sleep(0.05)
    before = records(path)
    assert len(before) <= 2 + (time.monotonic() - since) / 0.05
    assert "system-metrics" not in {thread.name for thread in threading.enumerate()}
    with record_system_metrics(path, every=60.0):
        pass
    assert len(records(path)) == len(before) + 1, "earlier records are kept"


def test_a_missing_folder_does_not_disturb_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with record_system_metrics(tmp_path / "file" / "machine-0.jsonl", every=60.0):
        pass  # a record is due at the end in any case


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, True),
        ({"tracking.enabled": False}, False),
        ({"tracking.machine_every": None}, False),
    ],
)
def test_runs_that_are_tracked_have_records(tmp_path: Path, settings, kept) -> None:
    config = tiny_runs.tiny_config({"tracking.enabled": True, "optim.epochs": 1} | settings)
    folder = RunFolder(tmp_path / "run")
    assert train(config, LocalContext("cpu"), folder).finished
    logs = folder.machine_logs()
    assert list(logs) == ([0] if kept else [])
    if kept:
        assert records(logs[0])[-1]["cpu_utilization_percentage"] > 0


class _Card:
    """GPU without a power reading."""

    used, total, gpu = 2e9, 8e9, 75


class _NVML:
    """Fake of NVIDIA's library on a machine with two GPUs."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> _Card:
        return _Card()

    def nvmlDeviceGetMemoryInfo(self, card: _Card) -> _Card:
        return card

    def nvmlDeviceGetUtilizationRates(self, card: _Card) -> _Card:
        return card

    def nvmlDeviceGetPowerUsage(self, card: _Card) -> float:
        raise self.NVMLError


def test_all_gpus_of_the_machine_are_read(monkeypatch) -> None:
    monkeypatch.setattr(system_metrics, "pynvml", _NVML())
    values = SystemMetrics().read()
    for number in (0, 1):
        assert values[f"gpu_{number}_memory_usage_megabytes"] == 2000
        assert values[f"gpu_{number}_memory_usage_percentage"] == 25
        assert values[f"gpu_{number}_utilization_percentage"] == 75
    assert not any("power" in name for name in values)
