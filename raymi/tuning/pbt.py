"""Population-based training: which settings each member of a population trains with, and whose work
it takes over.

A population trains in generations of as many epochs each. After a generation the worst quarter of
its members take over the checkpoints of the best quarter, with their settings, a little changed.
What is planned is a function of space, seed and what the members have reached by then: no state is
lost with a process, and whoever is cut off plans the same again. To search by it:

    refusal = can_transfer(space, recipe, settings, interval)         # in `sweeps.exploitation`
    plans = first_generation(space, seed, size)
    for generation in range(1, num_generations + 1):
        for plan in plans:                                # all of them before any member trains on
            if plan.parent is not None:
                exploit(folder_of(plan.parent), folder_of(plan.member), (generation - 1) * interval)
        for plan in plans:                                # each in a process of its own
            train(config_of(plan.values), ..., test=False, until_epoch=generation * interval)
        plans = next_generation(space, seed, generation, plans, results)

`results` are the robust accuracies on validation of the last epoch of the generation, as the
weights of that epoch are what is handed on; not those of the best epoch so far. After a kill the
same calls are made again, with the results of the generations that are over: what was done then is
not done again.

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

LEAST = 2
"""Members that a population needs."""

_FACTORS = (0.8, 1.25)
_RESAMPLED = 0.25


@dataclass(frozen=True)
class Plan:
    """What a member does in a generation: it trains with `values`, from its own checkpoint; or,
    where there is a `parent`, from that one's."""

    member: int
    values: Values
    parent: int | None = None


def first_generation(space: Space, seed: int, size: int) -> tuple[Plan, ...]:
    """What the members of a population begin with.

    Args: size, members, at least `LEAST`.
    """
    if size < LEAST:
        raise ValueError(f"expected a population of at least {LEAST}, got {size}")
    keys = [random_key(seed, "member", member) for member in range(size)]
    return tuple(Plan(member, space.random(key)) for member, key in enumerate(keys))


def next_generation(
    space: Space, seed: int, generation: int, plans: Sequence[Plan], results: Sequence[float]
) -> tuple[Plan, ...]:
    """What the members do after a generation.

    The worst quarter of them (at least one), and all that failed, take over from members of the
    best quarter; the others go on as they are. Of equal members the one of lower number is ahead.

    Args: generation, the one that is over, from 1; plans of it; results of its members, higher is
        better, not a number for one that failed.
    Raises: ValueError where there are not as many results as members, or all failed.
    """
    if len(results) != len(plans):
        raise ValueError(f"expected {len(plans)} results, got {len(results)}")
    sound = [plan.member for plan in plans if math.isfinite(results[plan.member])]
    if not sound:
        raise ValueError("expected a result of some member, got none: all of them failed")
    ahead = sorted(sound, key=lambda member: (-results[member], member))
    failed = [plan.member for plan in plans if plan.member not in sound]
    quarter = max(1, len(plans) // 4)
    worst = {*failed, *ahead[len(plans) - max(quarter, len(failed)) :]}
    following = []
    for plan in plans:
        if plan.member in worst:
            key = random_key(seed, "parent", generation, plan.member)
            parent = random.Random(key).choice(ahead[:quarter])
            near = _Near(plans[parent].values, random_key(seed, "explore", generation, plan.member))
            following.append(Plan(plan.member, space.draw(near), parent))
        else:
            following.append(Plan(plan.member, plan.values))
    return tuple(following)


class _Near:
    """Draws values near those of another member: a number 0.8 or 1.25 times as large, a choice as
    it is, and one in four anew; anew as well what the other one was not asked for.

    What is drawn for a parameter depends on no other parameter.
    """

    def __init__(self, values: Values, key: int) -> None:
        self._values, self._key = values, key

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if self._is_anew(name):
            return self._anew(name).suggest_float(name, low, high, log=log)
        return min(max(self._values[name] * self._factor(name), low), high)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        if self._is_anew(name):
            return self._anew(name).suggest_int(name, low, high)
        value, factor = self._values[name], self._factor(name)
        moved = round(value * factor)
        if moved == value:
            moved += 1 if factor > 1 else -1
        return min(max(moved, low), high)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        if self._is_anew(name):
            return self._anew(name).suggest_categorical(name, choices)
        return self._values[name]

    def _is_anew(self, name: str) -> bool:
        return name not in self._values or self._random(name, "anew").random() < _RESAMPLED

    def _anew(self, name: str) -> Draws:
        return random_draws(random_key(self._key, name, "value"))

    def _factor(self, name: str) -> float:
        return self._random(name, "factor").choice(_FACTORS)

    def _random(self, name: str, what: str) -> random.Random:
        return random.Random(random_key(self._key, name, what))
