"""Terminal output and JSON of a benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import raymi
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section
from raymi.files import save_json
from raymi.hardware import available_cores, processor_name
from raymi.terminal.print_line import print_line, print_rows


def show(console: Console, section: Section) -> None:
    """Prints the table and the notes of a part."""
    console.print()
    print_line(console, section.title, "bold")
    if section.rows:
        print_rows(console, [section.columns, *section.rows])
    for note in section.notes:
        print_line(console, note)


def setting(plan: Plan, command: str) -> dict[str, Any]:
    """Returns machine, versions and command of a measurement."""
    cuda = plan.device.type == "cuda"
    return {
        "machine": processor_name(plan.device),
        "torch": torch.__version__,
        "threads": plan.threads,
        "cores": available_cores(),
        "float32 matmul": torch.get_float32_matmul_precision(),
        **({"cudnn tf32": torch.backends.cudnn.allow_tf32} if cuda else {}),
        "raymi": raymi.__version__,
        "seed": plan.config.seed,
        "rounds": plan.rounds,
        "command": command,
    }


def show_setting(console: Console, plan: Plan, setting: Mapping[str, Any]) -> None:
    """Prints the measured configuration and the setting."""
    config = plan.config
    mi, attack, scaling = config.mi, config.attack, config.scaling
    console.print()
    for line in (
        f"{config.model.name}, {config.data.name} sized random images, B = "
        f"{config.optim.batch_size}, PGD-{attack.steps} {attack.norm}, mi.form={mi.form} "
        f"mi.bound={mi.bound} mi.hidden={mi.hidden}, precision={scaling.precision} "
        f"channels_last={str(scaling.channels_last).lower()} "
        f"fold_batchnorm={str(scaling.fold_batchnorm).lower()}",
        "; ".join(f"{key} {value}" for key, value in setting.items()),
    ):
        print_line(console, line)


def write_json(
    file: Path, plan: Plan, setting: Mapping[str, Any], sections: Mapping[str, Section]
) -> None:
    """Writes all numbers: seconds, bytes, ratios."""
    content = {
        "setting": dict(setting),
        "config": json.loads(plan.config.model_dump_json()),
        "parts": {part: dict(section.data) for part, section in sections.items()},
    }
    save_json(file, content)
