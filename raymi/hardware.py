"""Processors, GPUs and memory of this machine."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


def available_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_gpus() -> list[str]:
    """Returns the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    num = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(num))) if named is None else named.split(",")
    return [name.strip() for name in names][:num]


def processor_name(device: torch.device) -> str:
    """Returns the product name of a GPU or of the processor."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        name = models[0] if models else name
    return name


def machine_in_words() -> str:
    """Describes this machine in one line: processor, cores, memory, GPUs."""
    import torch

    memory = psutil.virtual_memory().total / 2**30
    cpu = processor_name(torch.device("cpu"))
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    counted = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)]
    cores = f"{psutil.cpu_count() or available_cores()} cores"
    return ", ".join([cpu, cores, f"{memory:.0f} GiB", *(counted or ["no GPU"])])
