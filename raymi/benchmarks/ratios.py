"""Training steps against each other: the cost of MI, and of the released code's schedule."""

from __future__ import annotations

from statistics import median

from raymi.benchmarks.arms import (
    AT,
    JOINT,
    NAIVE,
    RELEASED,
    STAGED,
    arms_of,
    naive_problem,
    step_call,
)
from raymi.benchmarks.clock import interleaved, ratio
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section, number

WHOLE, OUTSIDE = "whole step", "outside of crafting"
_TARGETS = {
    (STAGED, AT): f"{WHOLE} <= 1.25",
    (JOINT, AT): f"{WHOLE} <= 1.45",
    (RELEASED, AT): f"{WHOLE} <= 1.25",
    (NAIVE, RELEASED): f"{WHOLE} >= 1.7; {OUTSIDE} >= 3",
}
"""Compared arms, with the target of their ratio."""


def measure_ratios(plan: Plan) -> Section:
    """Times steps of all arms, with the attack and without."""
    problem = naive_problem(plan.config)
    arms = arms_of(plan.config)
    calls = {
        f"{where}: {arm}": step_call(plan.config, arm, plan.device, crafting=where == WHOLE)
        for where in (WHOLE, OUTSIDE)
        for arm in arms
    }
    seconds = interleaved(calls, plan.rounds)

    def cell(arm: str, where: str) -> str:
        each = [1000 * s / plan.config.optim.batch_size for s in seconds[f"{where}: {arm}"]]
        return f"{number(median(each))} ({number(min(each))} to {number(max(each))})"

    rows = [[arm, cell(arm, WHOLE), cell(arm, OUTSIDE), ""] for arm in arms]
    ratios = {}
    for (over, under), target in _TARGETS.items():
        if over in arms:
            values = {
                where: ratio(seconds[f"{where}: {over}"], seconds[f"{where}: {under}"])
                for where in (WHOLE, OUTSIDE)
            }
            ratios[f"{over} / {under}"] = {where: vars(value) for where, value in values.items()}
            rows.append([f"{over} / {under}", *map(str, values.values()), target])
    notes = [
        f"{STAGED}, {JOINT}: mi.form={plan.config.mi.form} with frozen estimators, with estimators "
        f"that learn. {RELEASED}: mi.form=released, staged; {NAIVE}: the same mathematics in the "
        "schedule of the released code. Always the same batch, without loading data.",
    ]
    if problem:
        notes.append(f"{NAIVE}: {problem}")
    return Section(
        "Steps: ms per sample, and ratios; medians over the rounds (lowest to highest)",
        ("step", WHOLE, OUTSIDE, "target"),
        rows,
        {"seconds_per_step": seconds, "ratios": ratios},
        notes,
    )
