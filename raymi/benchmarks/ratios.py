"""Whole training steps against each other, in turn: what MI costs, and what the schedule saves."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

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
from raymi.benchmarks.clock import Clock, interleaved, ratio
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section, number

WHOLE, OUTSIDE = "whole step", "outside of crafting"


class _Comparison(NamedTuple):
    over: str
    under: str
    targets: dict[str, str]


_COMPARED = (
    _Comparison(STAGED, AT, {WHOLE: "<= 1.25"}),
    _Comparison(JOINT, AT, {WHOLE: "<= 1.45"}),
    _Comparison(RELEASED, AT, {WHOLE: "<= 1.25"}),
    _Comparison(NAIVE, RELEASED, {WHOLE: ">= 1.7", OUTSIDE: ">= 3"}),
)


def measure_ratios(plan: Plan) -> Section:
    """Times steps of all arms, whole and with given adversarial samples."""
    problem = naive_problem(plan.config)
    arms = arms_of(plan.config)
    calls = {
        f"{where}: {arm}": step_call(plan.config, arm, plan.device, crafting=where == WHOLE)
        for where in (WHOLE, OUTSIDE)
        for arm in arms
    }
    seconds = interleaved(calls, plan.rounds, Clock(plan.device))
    batch = plan.config.optim.batch_size
    rows = [
        [arm, *(_milliseconds(seconds[f"{w}: {arm}"], batch) for w in (WHOLE, OUTSIDE)), ""]
        for arm in arms
    ]
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for one in _COMPARED:
        if one.over not in arms:
            continue
        name = f"{one.over} / {one.under}"
        found = {
            w: ratio(seconds[f"{w}: {one.over}"], seconds[f"{w}: {one.under}"])
            for w in (WHOLE, OUTSIDE)
        }
        ratios[name] = {w: vars(value) for w, value in found.items()}
        target = "; ".join(f"{w} {wanted}" for w, wanted in one.targets.items())
        rows.append([name, *(str(found[w]) for w in (WHOLE, OUTSIDE)), target])
    notes = [
        f"{STAGED}, {JOINT}: mi.form={plan.config.mi.form} with frozen estimators, with estimators "
        f"that learn. {RELEASED}: mi.form=released, staged; {NAIVE}: the same mathematics in the "
        "schedule of the released code. Always the same batch, so without the data.",
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


def _milliseconds(seconds: Sequence[float], batch: int) -> str:
    each = [1000 * s / batch for s in seconds]
    return f"{number(median(each))} ({number(min(each))} to {number(max(each))})"
