"""Paired differences of the arms to the reference, with simultaneous intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from raymi.formatting import markdown_table
from studies.does_it_help.setting import ARMS, FAST, PGD, REFERENCE

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Mean difference of an arm to the reference, in points, and half of its interval."""

    mean: float
    half: float

    @property
    def decided(self) -> bool:
        """True if the interval does not contain 0."""
        return abs(self.mean) > self.half


def differences(
    values: Mapping[str, Sequence[float]], reference: str = REFERENCE
) -> dict[str, Difference]:
    """Computes paired differences with simultaneous intervals.

    Arms and seeds are a two-way layout without interaction: an arm's mean difference has the
    standard error sqrt(2 s^2 / S), where s^2 is the residual variance of all arms, with
    (A - 1)(S - 1) degrees of freedom. Intervals are t intervals, with Bonferroni's correction for
    the A - 1 comparisons.

    Args:
        values: by arm, a number for each seed, in the same order.
        reference: arm that is subtracted.

    Returns:
        By arm, without the reference; infinite intervals for one seed.
    """
    table = np.array([values[arm] for arm in values], dtype=float)  # (A, S)
    num_arms, num_seeds = table.shape
    means = table.mean(axis=1)
    half = math.inf
    if num_seeds > 1:
        residual = table - means[:, None] - table.mean(axis=0) + table.mean()
        freedom = (num_arms - 1) * (num_seeds - 1)
        error = math.sqrt(2 * (residual**2).sum() / freedom / num_seeds)
        tail = (1 - CONFIDENCE) / 2 / (num_arms - 1)
        half = float(t.ppf(1 - tail, freedom)) * error
    base = means[list(values).index(reference)]
    return {
        arm: Difference(float(mean - base), half)
        for arm, mean in zip(values, means, strict=True)
        if arm != reference
    }


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns tables of the chosen and of the last epoch, in Markdown.

    Only arms that have all seeds of the reference are compared.
    """
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = result
    seeds = sorted(by_arm.get(REFERENCE, {}))
    arms = [arm for arm in ARMS if seeds and set(seeds) <= set(by_arm.get(arm, {}))]
    if len(arms) < 2:
        return "no arm has the seeds of the reference yet\n"
    hours = sum(sum(result["seconds"].values()) for result in results) / 3600
    parts = [f"{len(results)} units, {hours:.1f} hours of one core; seeds {seeds}."]
    for which in ("chosen", "last"):
        chosen = {arm: [by_arm[arm][seed]["test"][which] for seed in seeds] for arm in arms}
        parts.append(f"### {which.capitalize()} epoch\n\n{_table(chosen)}")
    return "\n\n".join(parts) + "\n"


def _table(tests: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    measures = ("clean", PGD, FAST)
    values = {
        measure: {arm: [100 * one[measure] for one in rows] for arm, rows in tests.items()}
        for measure in measures
    }
    rows = [("arm", *(f"{m} %" for m in measures), *(f"{m} - {REFERENCE}" for m in measures))]
    gaps = {measure: differences(values[measure]) for measure in measures}
    for arm in tests:
        means = [f"{np.mean(values[measure][arm]):.2f}" for measure in measures]
        compared = [_text(gaps[measure].get(arm)) for measure in measures]
        rows.append((arm, *means, *compared))
    return markdown_table(rows)


def _text(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    star = "*" if difference.decided else ""
    return f"{difference.mean:+.2f} ± {difference.half:.2f}{star}"
