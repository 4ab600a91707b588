"""Population-based training (PBT): plans each member's settings and checkpoint transfers.

A population trains in generations of equal length. After each one the worst quarter of its members
continue from the checkpoints of the best quarter, with perturbed copies of their settings. The plan
is a function of the space, the seed and the results: it needs no state of its own, and an
interrupted search plans the same again. To search with it:

    problem = transfer_problem(space, recipe, settings, interval)     # in `pbt_checkpoints`
    plans = first_generation(space, seed, size)
    for generation in range(1, num_generations + 1):
        for plan in plans:                            # all transfers before any member trains on
            if plan.parent is not None:
                source, target = folder_of(plan.parent), folder_of(plan.member)
                transfer_checkpoint(source, target, (generation - 1) * interval)
        for plan in plans:                            # each in its own process
            train(config_of(plan.values), ..., test=False, until_epoch=generation * interval)
        plans = next_generation(space, seed, generation, plans, results)

`results` are the robust validation accuracies of the generation's last epoch, not of the best epoch
so far: a transfer copies the weights of the last epoch. After a kill, make the same calls again
with the results of the completed generations; finished work is skipped.

Source: Jaderberg et al., "Population based training of neural networks", 2017: truncation selection
(there 20%), perturbation and resampling.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raymi.counter_rng import random_key
from raymi.tuning.space import Draws, Space, Values, random_draws

MIN_MEMBERS = 2
"""Smallest population."""

_FACTORS = (0.8, 1.25)
_RESAMPLED = 0.25


@dataclass(frozen=True)
class Plan:
    """Plan of a member for one generation.

    Attributes:
        member: Number of the member, from 0.
        values: Values that it trains with.
        parent: Member whose checkpoint it continues from; None: its own.
    """

    member: int
    values: Values
    parent: int | None = None


def first_generation(space: Space, seed: int, size: int) -> tuple[Plan, ...]:
    """Returns the plans of the first generation.

    Args:
        space: The search space.
        seed: Seed of all draws.
        size: Number of members, at least `MIN_MEMBERS`.

    Raises:
        ValueError: The population is too small.
    """
    if size < MIN_MEMBERS:
        raise ValueError(f"expected a population of at least {MIN_MEMBERS}, got {size}")
    keys = [random_key(seed, "member", member) for member in range(size)]
    return tuple(Plan(member, space.random(key)) for member, key in enumerate(keys))


def next_generation(
    space: Space, seed: int, generation: int, plans: Sequence[Plan], results: Sequence[float]
) -> tuple[Plan, ...]:
    """Returns the plans of the generation after `generation`.

    The worst quarter of the members (at least one) and all failed ones continue from members of the
    best quarter; the others keep their settings. Ties go to the lower number.

    Args:
        space: The search space.
        seed: Seed of all draws.
        generation: The completed generation, counted from 1.
        plans: Its plans.
        results: Result of each member, higher is better; NaN or infinite: the member failed.

    Raises:
        ValueError: A member lacks a result, or all members failed.
    """
    if len(results) != len(plans):
        raise ValueError(f"expected {len(plans)} results, got {len(results)}")
    succeeded = [plan.member for plan in plans if math.isfinite(results[plan.member])]
    if not succeeded:
        raise ValueError("expected a result of some member, got none: all members failed")
    ranked = sorted(succeeded, key=lambda member: (-results[member], member))
    failed = [plan.member for plan in plans if plan.member not in succeeded]
    quarter = max(1, len(plans) // 4)
    worst = {*failed, *ranked[len(plans) - max(quarter, len(failed)) :]}
    following = []
    for plan in plans:
        if plan.member in worst:
            key = random_key(seed, "parent", generation, plan.member)
            parent = random.Random(key).choice(ranked[:quarter])
            perturbed = _Perturbed(
                plans[parent].values, random_key(seed, "explore", generation, plan.member)
            )
            following.append(Plan(plan.member, space.draw(perturbed), parent))
        else:
            following.append(Plan(plan.member, plan.values))
    return tuple(following)


class _Perturbed:
    """Draws that perturb another member's values.

    Multiplies a number by 0.8 or 1.25 and keeps a choice. Resamples a quarter of the parameters,
    and those that the other member did not draw. Each parameter's draw is independent of the
    others.
    """

    def __init__(self, values: Values, key: int) -> None:
        self._values, self._key = values, key

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if self._is_resampled(name):
            return self._resampled(name).suggest_float(name, low, high, log=log)
        return min(max(self._values[name] * self._factor(name), low), high)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        if self._is_resampled(name):
            return self._resampled(name).suggest_int(name, low, high)
        value, factor = self._values[name], self._factor(name)
        moved = round(value * factor)
        if moved == value:
            moved += 1 if factor > 1 else -1
        return min(max(moved, low), high)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        if self._is_resampled(name):
            return self._resampled(name).suggest_categorical(name, choices)
        return self._values[name]

    def _is_resampled(self, name: str) -> bool:
        return name not in self._values or self._random(name, "anew").random() < _RESAMPLED

    def _resampled(self, name: str) -> Draws:
        return random_draws(random_key(self._key, name, "value"))

    def _factor(self, name: str) -> float:
        return self._random(name, "factor").choice(_FACTORS)

    def _random(self, name: str, what: str) -> random.Random:
        return random.Random(random_key(self._key, name, what))
