"""Training steps against each other: the cost of MI."""

from __future__ import annotations

from statistics import median

from raymi.benchmarks.arms import ARMS, AT, JOINT, RELEASED, STAGED, step_call
from raymi.benchmarks.clock import interleaved, ratio
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section, number

WHOLE, OUTSIDE = "whole step", "outside of crafting"
_TARGETS = {
    (STAGED, AT): f"{WHOLE} <= 1.25",
    (JOINT, AT): f"{WHOLE} <= 1.45",
    (RELEASED, AT): f"{WHOLE} <= 1.25",
}
"""Compared arms, with the target of their ratio."""


def measure_ratios(plan: Plan) -> Section:
    """Times steps of all arms, with the attack and without."""
    calls = {
        f"{where}: {arm}": step_call(plan.config, arm, plan.device, crafting=where == WHOLE)
        for where in (WHOLE, OUTSIDE)
        for arm in ARMS
    }
    seconds = interleaved(calls, plan.rounds)

    def cell(arm: str, where: str) -> str:
        each = [1000 * s / plan.config.optim.batch_size for s in seconds[f"{where}: {arm}"]]
        return f"{number(median(each))} ({number(min(each))} to {number(max(each))})"

    rows = [[arm, cell(arm, WHOLE), cell(arm, OUTSIDE), ""] for arm in ARMS]
    ratios = {}
    for (over, under), target in _TARGETS.items():
        values = {
            where: ratio(seconds[f"{where}: {over}"], seconds[f"{where}: {under}"])
            for where in (WHOLE, OUTSIDE)
        }
        ratios[f"{over} / {under}"] = {where: vars(value) for where, value in values.items()}
        rows.append([f"{over} / {under}", *map(str, values.values()), target])
    note = (
        f"{STAGED}, {JOINT}: mi.form={plan.config.mi.form} with frozen estimators, with estimators "
        f"that learn. {RELEASED}: mi.form=released, staged. Always the same batch, without loading "
        "data."
    )
    return Section(
        "Steps: ms per sample, and ratios; medians over the rounds (lowest to highest)",
        ("step", WHOLE, OUTSIDE, "target"),
        rows,
        {"seconds_per_step": seconds, "ratios": ratios},
        (note,),
    )
