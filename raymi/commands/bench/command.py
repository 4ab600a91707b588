"""Runs `python -m raymi.bench`, prints and writes what it measures."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from raymi.benchmarks.crafting import measure_crafting
from raymi.benchmarks.memory import measure_memory
from raymi.benchmarks.phases import measure_phases
from raymi.benchmarks.plan import PARTS, Plan, free_slots
from raymi.benchmarks.profile import measure_profile
from raymi.benchmarks.ratios import measure_ratios
from raymi.benchmarks.scaling import measure_scaling
from raymi.benchmarks.section import MeasurementFailed, Section, failed
from raymi.commands.bench.options import BenchRequest
from raymi.commands.bench.report import setting, show, show_setting, write_json
from raymi.commands.cli import EXIT_FAILED
from raymi.signals import ended_by_sigterm
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_line

MEASURES: dict[str, Callable[[Plan], Section]] = {
    "phases": measure_phases,
    "profile": measure_profile,
    "ratios": measure_ratios,
    "crafting": measure_crafting,
    "scaling": measure_scaling,
    "memory": measure_memory,
}


def planned(request: BenchRequest) -> Plan:
    """Returns the plan of a command line on this machine."""
    options, config = request.line.options, request.config
    cuda = torch.cuda.is_available() and config.scaling.use_gpu != "false"
    device = torch.device("cuda" if cuda else "cpu")
    given = "scaling.workers" in request.line.settings
    return Plan(
        config=config,
        parts=tuple(part for part in PARTS if part in (options.parts or PARTS)),
        device=device,
        rounds=options.rounds,
        runs=options.runs,
        loop_steps=options.loop_steps,
        threads=options.threads or torch.get_num_threads(),
        workers=config.scaling.most_workers if given else min(free_slots(device), 8 if cuda else 2),
        json=options.json_file,
    )


def bench(request: BenchRequest) -> int:
    """Measures, prints and writes what a command line names; returns the exit code."""
    console, plan = Terminal(), planned(request)
    torch.set_num_threads(plan.threads)
    where = setting(plan, request.line.command)
    sections: dict[str, Section] = {}
    try:
        with ended_by_sigterm():
            for position, part in enumerate(plan.parts, start=1):
                line = f"{position} of {len(plan.parts)}: {part}, {PARTS[part]}"
                print_line(Terminal(stderr=True), line)
                sections[part] = measure(part, plan)
                show(console, sections[part])
    finally:
        if sections:
            show_setting(console, plan, where)
            if plan.json is not None:
                write_json(plan.json, plan, where, sections)
    return EXIT_FAILED if any("failed" in section.data for section in sections.values()) else 0


def measure(part: str, plan: Plan) -> Section:
    """Measures a part; a failure becomes a section, so that the other parts continue."""
    try:
        return MEASURES[part](plan)
    except (MeasurementFailed, torch.OutOfMemoryError) as error:
        return failed(PARTS[part].capitalize(), str(error))
    finally:
        gc.collect()
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()  # other processes need the memory
