"""Plans of population-based training: parents and perturbed values."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from raymi.tuning.pbt import Plan, first_generation, next_generation
from raymi.tuning.space import Space, find_space

SPACE = Space(
    name="mixed",
    description="",
    parameters={
        "mi.balance": {"log": (0.02, 1.0)},
        "mi.difference": {"uniform": (0.0, 2.0)},
        "attack.steps": {"integers": (1, 4)},
        "weighting": {"choice": {"balanced": {}, "cosine": {"mi.cosine": 0.1}}},
        "loss.label_smoothing": {"uniform": (0.0, 0.3), "when": {"weighting": "cosine"}},
    },
)


def within(space, values):
    """Returns whether a space can draw the values."""
    for name, parameter in space.parameters.items():
        active = all(values.get(other) == wanted for other, wanted in parameter.when.items())
        if (name in values) != active:
            return False
        if active and parameter.choice is not None and values[name] not in parameter.choice:
            return False
        ends = parameter.log or parameter.uniform or parameter.integers
        if active and ends is not None and not ends[0] <= values[name] <= ends[1]:
            return False
    return True


def generations(space, seed, size, number):
    """Yields plans, random results and next plans of each generation."""
    plans, noise = first_generation(space, seed, size), random.Random(seed)
    for generation in range(1, number + 1):
        results = [noise.random() for _ in plans]
        following = next_generation(space, seed, generation, plans, results)
        yield plans, results, following
        plans = following


SHIPPED = find_space("mi_weights").fitted("quickstart")


@pytest.mark.parametrize("space", [SPACE, SHIPPED], ids=lambda one: one.name)
def test_values_stay_within_the_space(space):
    for plans, _, following in generations(space, 3, 12, 40):
        assert all(within(space, plan.values) for plan in (*plans, *following))
    assert all(type(plan.values.get("attack.steps", 1)) is int for plan in plans)


@pytest.mark.parametrize(("size", "replaced"), [(2, 1), (3, 1), (7, 1), (8, 2), (20, 5)])
def test_the_worst_quarter_continues_from_the_best_and_no_other_member_changes(size, replaced):
    for plans, results, following in generations(SPACE, 0, size, 10):
        ranked = sorted(range(size), key=lambda member: results[member])
        assert [plan.member for plan in following] == list(range(size))
        for plan in following:
            if plan.member in ranked[:replaced]:
                assert plan.parent in ranked[-replaced:]
            else:
                assert plan == Plan(plan.member, plans[plan.member].values, None)


def test_all_of_the_best_quarter_are_parents():
    parents = Counter(
        plan.parent
        for generation in range(1, 60)
        for plan in next_generation(SPACE, 0, generation, first_generation(SPACE, 0, 8), range(8))
    )
    assert parents.keys() == {None, 6, 7}
    assert min(parents[6], parents[7]) > 30


def test_a_plan_depends_on_seed_generation_and_results_alone():
    plans = first_generation(SPACE, 0, 8)
    results = [0.1 * member for member in range(8)]
    random.seed(1)
    one = next_generation(SPACE, 0, 1, plans, results)
    random.seed(2)
    assert next_generation(SPACE, 0, 1, plans, results) == one
    assert first_generation(SPACE, 0, 8) == plans
    assert first_generation(SPACE, 0, 4) == plans[:4]
    assert next_generation(SPACE, 0, 2, plans, results)[0].values != one[0].values
    assert next_generation(SPACE, 1, 1, plans, results)[0].values != one[0].values
    assert first_generation(SPACE, 1, 8)[0].values != plans[0].values
    assert len({str(plan.values) for plan in plans}) == 8


def perturbed(values, tries=400):
    """Returns perturbed values of the better of two members."""
    plans = (Plan(0, {}), Plan(1, values))
    plans_of_all = (
        next_generation(SPACE, 0, number, plans, (0.0, 1.0)) for number in range(1, tries + 1)
    )
    return [plans[0].values for plans in plans_of_all]


def test_numbers_change_by_a_fifth_and_a_quarter_is_resampled():
    before = {"mi.balance": 0.1, "mi.difference": 1.0, "attack.steps": 2, "weighting": "balanced"}
    after = perturbed(before)
    for name in ("mi.balance", "mi.difference"):
        ratios = Counter(round(values[name] / before[name], 9) for values in after)
        assert ratios[0.8] == pytest.approx(150, abs=40)
        assert ratios[1.25] == pytest.approx(150, abs=40)
        assert len(ratios) > 50, "the others are resampled"
    steps = Counter(values["attack.steps"] for values in after)
    assert steps.keys() == {1, 2, 3, 4}
    assert steps[1] > 150 < steps[3], "an integer changes by at least one"
    assert Counter(v["weighting"] for v in after)["balanced"] == pytest.approx(350, abs=30)
    moved = [(v["mi.balance"] > 0.1, v["mi.difference"] > 1.0) for v in after]
    assert min(Counter(moved).values()) > 50, "parameters change independently"


def test_conditional_parameters_follow_the_choice():
    before = {"mi.balance": 0.1, "mi.difference": 1.0, "attack.steps": 2, "weighting": "cosine"}
    after = perturbed(before | {"loss.label_smoothing": 0.1})
    unchanged = [v for v in after if v["weighting"] == "cosine"]
    assert all("loss.label_smoothing" in v for v in unchanged)
    assert not any("loss.label_smoothing" in v for v in after if v not in unchanged)
    added = [v for v in perturbed(before | {"weighting": "balanced"}) if v["weighting"] == "cosine"]
    assert len({v["loss.label_smoothing"] for v in added}) == len(added) > 10


def test_a_number_at_its_end_stays_in_range():
    before = {"mi.balance": 1.0, "mi.difference": 2.0, "attack.steps": 4, "weighting": "balanced"}
    assert {1.0, 0.8} < {values["mi.balance"] for values in perturbed(before)}


def test_failed_members_continue_from_successful_ones():
    plans = first_generation(SPACE, 0, 8)
    results = [math.nan, 0.3, math.nan, 0.5, 0.4, -math.inf, 0.1, 0.2]
    following = next_generation(SPACE, 0, 1, plans, results)
    assert [plan.member for plan in following if plan.parent is not None] == [0, 2, 5]
    assert {plan.parent for plan in following} <= {None, 3, 4}
    one_failed = next_generation(SPACE, 0, 1, plans, [0.1, math.nan, *[0.5] * 6])
    assert [plan.member for plan in one_failed if plan.parent is not None] == [0, 1]
    only_one_left = next_generation(SPACE, 0, 1, plans, [math.nan] * 7 + [0.0])
    assert [plan.parent for plan in only_one_left] == [7] * 7 + [None]
    with pytest.raises(ValueError, match="all members failed"):
        next_generation(SPACE, 0, 1, plans, [math.nan] * 8)


def test_invalid_populations_are_refused():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        first_generation(SPACE, 0, 1)
    with pytest.raises(ValueError, match="expected 2 results, got 3"):
        next_generation(SPACE, 0, 1, first_generation(SPACE, 0, 2), [0.1, 0.2, 0.3])
