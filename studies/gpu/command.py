"""`python -m studies.gpu [OUT.json] [parts=...] [minutes=9] [batch=512] [small=true]`.

Measures raymi on this machine's GPU, or on the CPU where there is none; needs neither Ray nor
MLflow. Results are written after each part; a part is begun only within the first `minutes`.
"""

from __future__ import annotations

import gc
import json
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch

from raymi.benchmarks.phases import measure_phases
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.profile import measure_profile
from raymi.benchmarks.section import Section as Results
from raymi.benchmarks.section import failed
from raymi.commands.cli import EXIT_FAILED, run_command
from raymi.commands.option_types import Names, known
from raymi.errors import first_line
from raymi.fields import Count, Duration, Images, Section
from raymi.formatting import markdown_table
from raymi.hardware import processor_name
from studies.gpu.parity import measure_parity, measure_syncs
from studies.gpu.speed import config_of, measure_attacks, measure_training
from studies.words import read_words

PARTS = ("parity", "training", "syncs", "phases", "attacks", "batches", "profile", "compile")


class GPUOptions(Section):
    """Options of the study."""

    parts: Annotated[Names, known("part", PARTS)] = PARTS
    """Parts, in this order."""
    minutes: Duration = 9.0
    """Minutes after which no part is begun."""
    batch: Images = 512
    """Images in a training batch."""
    rounds: Count = 3
    """Measurements in turn."""
    small: bool = False
    """Thin networks and few images, for a try on a CPU."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_measure, argv)


def _measure(words: list[str]) -> int:
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return 0
    options, place = read_words(words, GPUOptions)
    out = Path(place or "gpu.json")
    began, results = time.monotonic(), {"environment": environment()}
    texts = [f"# {results['environment']['device']}"]
    for part in options.parts:
        if time.monotonic() - began > 60 * options.minutes:
            texts.append(f"{part}: not begun, {options.minutes:g} minutes are over")
            continue
        start = time.monotonic()
        section = _attempt(part, _measures(options)[part])
        seconds = round(time.monotonic() - start, 1)
        results[part] = {**section.data, "seconds": seconds}
        texts.append(_text(section, seconds))
        print(texts[-1], flush=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
        out.with_suffix(".md").write_text("\n\n".join(texts) + "\n")
    return EXIT_FAILED if any("failed" in one for one in results.values()) else 0


def environment() -> dict[str, Any]:
    """Returns names and versions of the machine and of its software."""
    cuda = torch.cuda.is_available()
    facts: dict[str, Any] = {
        "device": processor_name(torch.device("cuda" if cuda else "cpu")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    for name in ("raymi", "torchattacks"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = None
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
    return facts


def _measures(options: GPUOptions) -> Mapping[str, Callable[[], Results]]:
    """Returns the measurement of each part."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small, rounds = options.small, options.rounds
    batch = 16 if small else options.batch

    def plan(precision: str) -> Plan:
        settings = {"scaling.precision": precision, "scaling.channels_last": True}
        config = config_of(batch, settings, small=small)
        return Plan(config, (), device, rounds, 1, 1, torch.get_num_threads(), 1, None)

    return {
        "parity": lambda: measure_parity(device, small=small, compiled=False),
        "training": lambda: measure_training(device, batch, rounds, small=small, compiled=False),
        "syncs": lambda: measure_syncs(device, small=small),
        "phases": lambda: measure_phases(plan("bf16")),
        "attacks": lambda: measure_attacks(device, 8 if small else 512, small=small),
        "batches": lambda: _batches(device, rounds, small=small),
        "profile": lambda: measure_profile(plan("bf16")),
        "compile": lambda: measure_training(device, batch, rounds, small=small, compiled=True),
    }


def _batches(device: torch.device, rounds: int, *, small: bool) -> Results:
    """Times training at several batch sizes, up to the one that no longer fits."""
    rows, data = [], dict[str, Any]()
    for batch in (8,) if small else (128, 256, 1024, 2048, 4096):
        try:
            section = measure_training(device, batch, rounds, small=small, compiled=False)
        except torch.OutOfMemoryError as error:
            rows.append([str(batch), first_line(error)[:60], ""])
            break
        seconds = section.data["seconds_per_step"]
        best = {
            arm: max(batch / s for name, s in seconds.items() if name.startswith(arm))
            for arm in ("AT", "NAMID")
        }
        rows.append([str(batch), *(f"{value:.0f}" for value in best.values())])
        data[str(batch)] = seconds
        _free(device)
    title = "Images/s of the fastest option by batch size"
    return Results(title, ("batch", "AT", "NAMID"), rows, data)


def _attempt(part: str, measure: Callable[[], Results]) -> Results:
    """Measures a part; a failure becomes a section, so that the other parts continue."""
    try:
        return measure()
    except Exception as error:
        return failed(part, f"{type(error).__name__}: {first_line(error)}")
    finally:
        gc.collect()
        _free(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _text(section: Results, seconds: float) -> str:
    table = markdown_table([section.columns, *section.rows]) if section.columns else ""
    notes = "\n".join(section.notes)
    return f"## {section.title}\n\n{table}\n\n{notes}\n\n({seconds:.0f} s)"
