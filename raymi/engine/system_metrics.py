"""System metrics of a run's machines: processor, memory, disk, network, GPUs.

The first worker of each machine records them into a file of the run, in a thread, under MLflow's
names. Failed records are skipped: training never waits for them, and never fails because of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from raymi.runs.journal import Journal

try:
    import pynvml
except ImportError:  # without it, GPUs are not recorded
    pynvml = None

_MEGABYTE = 1e6
_FIRST_SECONDS = 2.0
"""Seconds before the first record, so that short runs have one."""


@contextmanager
def record_system_metrics(path: Path | None, every: float) -> Iterator[None]:
    """Records system metrics of this machine during a block.

    Args:
        path: of the file, a line per record; None: nothing is recorded.
        every: seconds between two records.
    """
    if path is None:
        yield
        return
    recorder = _Recorder(path, every)
    recorder.start()
    try:
        yield
    finally:
        recorder.close()


class _Recorder(threading.Thread):
    def __init__(self, path: Path, every: float) -> None:
        super().__init__(daemon=True, name="system-metrics")
        self.path, self.every = path, every
        self._closed = threading.Event()

    def run(self) -> None:
        with suppress(OSError):  # storage is away: the next checkpoint reports it
            journal, metrics = Journal(self.path), SystemMetrics()
            wait = min(_FIRST_SECONDS, self.every)
            while not self._closed.wait(wait):
                journal.write("machine", metrics=metrics.read())
                wait = self.every
            journal.write("machine", metrics=metrics.read())
            journal.close()

    def close(self) -> None:
        """Writes a last record and ends the thread."""
        self._closed.set()
        self.join(timeout=5.0)


class SystemMetrics:
    """System metrics of this machine, of all of its processes."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # each call measures the time since the previous one
        self._network = self._transferred()
        self._gpus = _gpu_handles()

    def read(self) -> dict[str, float]:
        """Reads percentages, megabytes and watts by name, such as `cpu_utilization_percentage`.

        Network traffic counts from the creation of this object.
        """
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.sep)
        received, sent = self._transferred()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGABYTE,
            "disk_available_megabytes": disk.free / _MEGABYTE,
            "network_receive_megabytes": (received - self._network[0]) / _MEGABYTE,
            "network_transmit_megabytes": (sent - self._network[1]) / _MEGABYTE,
        }
        for number, handle in enumerate(self._gpus):
            gpu = _gpu_metrics(handle)
            values |= {f"gpu_{number}_{name}": value for name, value in gpu.items()}
        return {name: round(value, 1) for name, value in values.items()}

    def _transferred(self) -> tuple[int, int]:
        """Returns bytes received and sent since the machine's start; zeros without a counter."""
        counters = psutil.net_io_counters()
        return (0, 0) if counters is None else (counters.bytes_recv, counters.bytes_sent)


def _gpu_handles() -> list[Any]:
    """Returns all GPUs of the machine, also those that this worker may not use."""
    if pynvml is None:
        return []
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(k) for k in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _gpu_metrics(handle: Any) -> Mapping[str, float]:
    """Returns the metrics that a GPU reports; some GPUs lack some."""
    values: dict[str, float] = {}
    with suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        values["memory_usage_megabytes"] = memory.used / _MEGABYTE
        values["memory_usage_percentage"] = 100 * memory.used / memory.total
    with suppress(pynvml.NVMLError):
        values["utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    with suppress(pynvml.NVMLError):
        values["power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return values
