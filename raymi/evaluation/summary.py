"""From the outcomes of steps to robust accuracies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymi.attacks.suites import Ensemble
from raymi.evaluation.blocks import CLEAN, Outcome, Step
from raymi.statistics import wilson_interval


@dataclass(frozen=True)
class AttackCount:
    """Of an attack in its ensemble: samples that it was given, those that it broke, those of which
    it made no image (its gradients were not finite, say), seconds of all its steps together."""

    attack: str
    given: int
    broken: int
    unusable: int
    seconds: float


@dataclass(frozen=True)
class Robustness:
    """Accuracy under an ensemble: `right` of `num` samples are classified as they should be, and
    withstand all of its attacks."""

    name: str
    right: int
    num: int
    attacks: tuple[AttackCount, ...]

    @property
    def accuracy(self) -> float:
        """A fraction."""
        return self.right / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson_interval(self.right, self.num)


def summarise(
    outcomes: Iterable[tuple[Step, Outcome]], ensembles: Sequence[Ensemble]
) -> tuple[Robustness, ...]:
    """Clean accuracy, then that of each ensemble, from all outcomes of an evaluation.

    Raises: ValueError where outcomes are missing: the accuracy of a part would not be that of all.
    """
    made: dict[tuple[str, int], list[Outcome]] = defaultdict(list)
    for step, outcome in outcomes:
        made[step.ensemble, step.position].append(outcome)
    clean = made[CLEAN, 0]
    found = []
    for name, attacks in [(CLEAN, (CLEAN,)), *((e.name, _names(e)) for e in ensembles)]:
        counts = [
            _count(attack, made[name, position], len(clean))
            for position, attack in enumerate(attacks)
        ]
        right = counts[-1].given - counts[-1].broken
        found.append(Robustness(name, right, sum(len(one.samples) for one in clean), tuple(counts)))
    return tuple(found)


def _count(attack: str, outcomes: Sequence[Outcome], num_blocks: int) -> AttackCount:
    if len(outcomes) != num_blocks or not outcomes:
        raise ValueError(f"{attack} was made on {len(outcomes)} of {num_blocks} blocks")
    return AttackCount(
        attack,
        given=sum(len(outcome.samples) for outcome in outcomes),
        broken=sum(int(outcome.broken.sum()) for outcome in outcomes),
        unusable=sum(int((~outcome.usable).sum()) for outcome in outcomes),
        seconds=sum(outcome.seconds for outcome in outcomes),
    )


def withstood(outcomes: Iterable[tuple[Step, Outcome]], ensemble: str, num: int) -> Tensor:
    """Which of the samples are classified right, and withstand all attacks of an ensemble: (num,)
    bool; False for samples that it was not made on."""
    right = torch.zeros(num, dtype=torch.bool)
    for step, outcome in sorted(outcomes, key=lambda made: made[0].position):
        if step.ensemble == ensemble:
            right[outcome.samples] = ~outcome.broken
    return right


def _names(ensemble: Ensemble) -> tuple[str, ...]:
    return tuple(attack.name for attack in ensemble.attacks)
