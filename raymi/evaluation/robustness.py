"""From the outcomes of steps to robust accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raymi.attacks.suites import Ensemble
from raymi.evaluation.blocks import CLEAN, Outcome, Step
from raymi.evaluation.statistics import wilson_interval


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
    made = list(outcomes)
    clean = [outcome for step, outcome in made if step.attack == CLEAN]
    num = sum(len(outcome.samples) for outcome in clean)
    found = []
    for name, attacks in [(CLEAN, (CLEAN,)), *((e.name, _names(e)) for e in ensembles)]:
        counts = []
        for position, attack in enumerate(attacks):
            own = [
                outcome
                for step, outcome in made
                if (step.ensemble, step.position) == (name, position)
            ]
            if len(own) != len(clean) or not own:
                raise ValueError(f"{attack} was made on {len(own)} of {len(clean)} blocks")
            counts.append(
                AttackCount(
                    attack,
                    given=sum(len(outcome.samples) for outcome in own),
                    broken=sum(int(outcome.broken.sum()) for outcome in own),
                    unusable=sum(int((~outcome.usable).sum()) for outcome in own),
                    seconds=sum(outcome.seconds for outcome in own),
                )
            )
        right = counts[-1].given - counts[-1].broken
        found.append(Robustness(name, right, num, tuple(counts)))
    return tuple(found)


def _names(ensemble: Ensemble) -> tuple[str, ...]:
    return tuple(attack.name for attack in ensemble.attacks)
