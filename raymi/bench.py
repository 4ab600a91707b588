"""`python -m raymi.bench [recipe=NAME] [key=value ...]`: step cost, scaling and memory on the
machine it runs on.

Measures where the time of a training step goes, what NAMID costs beside AT and beside the schedule
of the released code, crafting against torchattacks, one worker against several, Ray Train against
plain torch.distributed, and memory. What is compared is measured in turn, and medians are shown.
Images are random, so no data set is needed; neither Ray nor MLflow is, but for the part about Ray.

Without a recipe a ResNet-18 on 32x32 images is measured, with batch 64, PGD-10 and estimators of
2048 units, with scaling.channels_last and scaling.fold_batchnorm. All keys of a run may be given,
and: parts=phases,ratios; rounds=5, of measurements in one process; runs=3, of processes in turn,
each of loop_steps=8 measured steps; workers=N; threads=N, of this process; memory=GiB, for the
largest batch; --json FILE.

Targets are printed beside what was measured; a missed one is no error.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import torch

from raymi.benchmarks.crafting import measure_crafting
from raymi.benchmarks.largest_batch import measure_largest_batch
from raymi.benchmarks.memory import measure_memory
from raymi.benchmarks.operations import measure_operations
from raymi.benchmarks.phases import measure_phases
from raymi.benchmarks.plan import PARTS, Plan, planned
from raymi.benchmarks.processes import ended_by_sigterm
from raymi.benchmarks.profile import measure_profile
from raymi.benchmarks.ratios import measure_ratios
from raymi.benchmarks.ray_train import measure_ray
from raymi.benchmarks.report import progress, setting, show, show_setting, write_json
from raymi.benchmarks.saved import measure_saved
from raymi.benchmarks.scaling import measure_scaling
from raymi.benchmarks.section import MeasurementFailed, Section, failed
from raymi.commands.cli import EXIT_FAILED, print_help, run_command, wants_help
from raymi.recipes import RECIPES
from raymi.terminal.console import Terminal

USAGE = (
    "python -m raymi.bench [recipe=NAME] [parts=A,B,...] [rounds=N] [runs=N] [loop_steps=N] "
    "[threads=N] [memory=GiB] [--json FILE] [key=value ...] [--help]"
)
MEASURES: dict[str, Callable[[Plan], Section]] = {
    "operations": measure_operations,
    "phases": measure_phases,
    "profile": measure_profile,
    "ratios": measure_ratios,
    "crafting": measure_crafting,
    "scaling": measure_scaling,
    "ray": measure_ray,
    "memory": measure_memory,
    "saved": measure_saved,
    "largest": measure_largest_batch,
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_bench, argv)


def _bench(words: list[str]) -> int:
    console = Terminal()
    if wants_help(words):
        named = {
            "parts": PARTS,
            "recipes": {name: recipe.description for name, recipe in RECIPES.items()},
        }
        print_help(console, USAGE, __doc__, named)
        return 0
    plan = planned(words)
    torch.set_num_threads(plan.threads)
    where = setting(plan, words)
    sections: dict[str, Section] = {}
    try:
        with ended_by_sigterm():
            for position, part in enumerate(plan.parts, start=1):
                with progress(part, position, len(plan.parts)):
                    sections[part] = _measured(part, plan)
                show(console, sections[part])
    finally:
        if sections:
            show_setting(console, plan, where)
            if plan.json is not None:
                write_json(plan, where, sections)
    return EXIT_FAILED if any("failed" in section.data for section in sections.values()) else 0


def _measured(part: str, plan: Plan) -> Section:
    """What a part measures; one that fails does not end the others."""
    try:
        return MEASURES[part](plan)
    except (MeasurementFailed, torch.OutOfMemoryError) as error:
        return failed(PARTS[part].capitalize(), str(error))
    finally:
        gc.collect()
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()  # other processes need the memory


if __name__ == "__main__":
    sys.exit(main())
