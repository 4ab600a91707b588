"""Command `raymi.bench`: measures step cost, scaling and memory on the machine it runs on.

Shows where the time of a training step goes, what NAMID costs beside AT and beside the schedule of
the released code, PGD against torchattacks, one worker against several, Ray Train against plain
torch.distributed, and peak memory. Alternatives are measured in turn, and medians are shown, beside
targets (a missed target is no error). Ctrl-C ends it and shows what was measured until then.

Images are random, so that no data set is needed. Only the part about Ray needs Ray. All keys of a
run may be set, too. --json FILE writes all numbers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from raymi.benchmarks.crafting import measure_crafting
from raymi.benchmarks.memory import measure_memory
from raymi.benchmarks.phases import measure_phases
from raymi.benchmarks.plan import PARTS, Plan
from raymi.benchmarks.profile import measure_profile
from raymi.benchmarks.ratios import measure_ratios
from raymi.benchmarks.scaling import measure_scaling
from raymi.benchmarks.section import MeasurementFailed, Section, failed
from raymi.commands.bench.options import BenchOptions, planned
from raymi.commands.bench.report import progress, setting, show, show_setting, write_json
from raymi.commands.cli import EXIT_FAILED, print_help, wants_help
from raymi.ray_backend.bench_train import measure_ray
from raymi.recipes import BASE_RECIPES
from raymi.signals import ended_by_sigterm
from raymi.terminal.console import Terminal

USAGE = "python -m raymi.bench [recipe=NAME] [parts=A,B,...] [key=value ...] [--json FILE] [--help]"
MEASURES: dict[str, Callable[[Plan], Section]] = {
    "phases": measure_phases,
    "profile": measure_profile,
    "ratios": measure_ratios,
    "crafting": measure_crafting,
    "scaling": measure_scaling,
    "ray": measure_ray,
    "memory": measure_memory,
}


def bench(words: list[str]) -> int:
    """Measures, prints and writes what a command line names; returns the exit code."""
    console = Terminal()
    if wants_help(words):
        recipes = {name: recipe.description for name, recipe in BASE_RECIPES.items()}
        print_help(
            console, USAGE, __doc__, {"parts": PARTS, "recipes": recipes}, options=BenchOptions
        )
        return 0
    plan = planned(words)
    torch.set_num_threads(plan.threads)
    where = setting(plan, words)
    sections: dict[str, Section] = {}
    try:
        with ended_by_sigterm():
            for position, part in enumerate(plan.parts, start=1):
                with progress(part, position, len(plan.parts)):
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
