"""How busy the machines of a run are while it trains: processor, memory, disk, network, GPUs.

The first worker of each machine records this into a file of the run, in a thread of its own, under
the names that MLflow has for such metrics. A record that cannot be made is left out: training never
waits for it, and never fails for it.
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
"""Before the first record, so that short runs have one."""


@contextmanager
def watched_machine(path: Path | None, every: float) -> Iterator[None]:
    """Records the use of this machine while something else goes on in it.

    Args: path, of the file that gets a line for each record, None: nothing is recorded; every,
        seconds from one to the next.
    """
    if path is None:
        yield
        return
    watch = _Watch(path, every)
    watch.start()
    try:
        yield
    finally:
        watch.close()


class _Watch(threading.Thread):
    def __init__(self, path: Path, every: float) -> None:
        super().__init__(daemon=True, name="machine-watch")
        self.path, self.every = path, every
        self._closed = threading.Event()

    def run(self) -> None:
        with suppress(OSError):  # storage that is away: whoever writes checkpoints says so
            journal, gauges = Journal(self.path), SystemMetrics()
            wait = min(_FIRST_SECONDS, self.every)
            while not self._closed.wait(wait):
                journal.write("machine", metrics=gauges.read())
                wait = self.every
            journal.write("machine", metrics=gauges.read())
            journal.close()

    def close(self) -> None:
        """Makes a last record."""
        self._closed.set()
        self.join(timeout=5.0)


class SystemMetrics:
    """Reads how much of this machine is in use, by all of its processes."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # each call tells of the time since the one before
        self._network = self._transferred()
        self._gpus = _gpu_handles()

    def read(self) -> dict[str, float]:
        """Percentages, megabytes (of the network: since these gauges were made), watts; by names
        such as `cpu_utilization_percentage`."""
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
            told = _of_gpu(handle)
            values |= {f"gpu_{number}_{name}": value for name, value in told.items()}
        return {name: round(value, 1) for name, value in values.items()}

    def _transferred(self) -> tuple[int, int]:
        """Bytes received and sent since the machine was started; zeros where nobody counts them."""
        counters = psutil.net_io_counters()
        return (0, 0) if counters is None else (counters.bytes_recv, counters.bytes_sent)


def _gpu_handles() -> list[Any]:
    """All GPUs of the machine, also those that this worker may not use."""
    if pynvml is None:
        return []
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(k) for k in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _of_gpu(handle: Any) -> Mapping[str, float]:
    """What a GPU tells: not all of them tell everything."""
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
