"""The closing tables, the same as JSON, and what is going on meanwhile."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

import raymi
from raymi.benchmarks.plan import PARTS, Plan
from raymi.benchmarks.section import Section
from raymi.files import save_json
from raymi.formatting import markdown_table
from raymi.hardware import available_cores, processor_name
from raymi.terminal.console import Table, Terminal, literal
from raymi.terminal.print_line import print_line, print_lines


@contextmanager
def progress(part: str, position: int, num: int) -> Iterator[None]:
    """Says on stderr what is being measured: on a terminal for as long as it lasts."""
    console = Terminal(stderr=True, soft_wrap=True)
    line = literal(f"{position} of {num}: {part}, {PARTS[part]}")
    if not console.is_terminal:
        console.print(line)
        yield
        return
    with console.status(line):
        yield


def show(console: Console, section: Section) -> None:
    """Prints the table of a part, and its notes."""
    console.print()
    print_line(console, section.title, "bold")
    if section.rows and console.is_terminal:
        table = Table()
        for i, heading in enumerate(section.columns):
            table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in section.rows:
            table.add_row(*row)
        console.print(table)
    elif section.rows:  # whole lines, however long
        print_lines(console, markdown_table([section.columns, *section.rows]))
    for note in section.notes:
        print_line(console, note)


def setting(plan: Plan, words: Sequence[str]) -> dict[str, Any]:
    """Where and how it was measured."""
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
        "command": f"python -m raymi.bench {shlex.join(words)}".strip(),
    }


def show_setting(console: Console, plan: Plan, where: Mapping[str, Any]) -> None:
    """Prints what was measured, and where."""
    config = plan.config
    mi, attack, scaling = config.mi, config.attack, config.scaling
    console.print()
    for line in (
        f"{config.model.name}, {config.data.name} sized random images, B = "
        f"{config.optim.batch_size}, PGD-{attack.steps} {attack.norm}, mi.form={mi.form} "
        f"mi.bound={mi.bound} mi.hidden={mi.hidden}, precision={scaling.precision} "
        f"channels_last={str(scaling.channels_last).lower()} "
        f"fold_batchnorm={str(scaling.fold_batchnorm).lower()}",
        "; ".join(f"{key} {value}" for key, value in where.items()),
    ):
        print_line(console, line)


def write_json(plan: Plan, where: Mapping[str, Any], sections: Mapping[str, Section]) -> None:
    """Writes all numbers: seconds, bytes, ratios."""
    assert plan.json is not None
    content = {
        "setting": dict(where),
        "config": json.loads(plan.config.model_dump_json()),
        "parts": {part: dict(section.data) for part, section in sections.items()},
    }
    save_json(plan.json, content)
