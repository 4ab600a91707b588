"""Robust accuracies from the outcomes of steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymi.attacks.suites import Ensemble
from raymi.evaluation.blocks import CLEAN, Outcome, Step
from raymi.statistics import wilson_interval


@dataclass(frozen=True)
class AttackCount:
    """Counts of one attack in its ensemble.

    Args:
        attack: name.
        given: samples that it attacked.
        broken: samples that it broke.
        unusable: samples without a valid image, such as after gradients that are not finite.
        seconds: of all its steps together.
    """

    attack: str
    given: int
    broken: int
    unusable: int
    seconds: float


@dataclass(frozen=True)
class Robustness:
    """Accuracy under an ensemble: `right` of `num` samples are right and no attack breaks them.

    Args:
        name: of the ensemble, or of a mean over ensembles, which counts a sample once for each.
        right: number of samples.
        num: number of samples in all.
        attacks: counts of each attack.
        bounds: 95% interval of a mean; None: Wilson's.
        detail: part of a mean, which stands for it in summaries.
        note: remark for reports.
    """

    name: str
    right: int
    num: int
    attacks: tuple[AttackCount, ...]
    bounds: tuple[float, float] | None = None
    detail: bool = False
    note: str = ""

    @property
    def accuracy(self) -> float:
        """Accuracy as a fraction."""
        return self.right / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy."""
        return self.bounds or wilson_interval(self.right, self.num)


def summarise(
    outcomes: Iterable[tuple[Step, Outcome]], ensembles: Sequence[Ensemble]
) -> tuple[Robustness, ...]:
    """Computes clean accuracy and the accuracy under each ensemble.

    Raises:
        ValueError: outcomes are missing.
    """
    by_attack: dict[tuple[str, int], list[Outcome]] = defaultdict(list)
    for step, outcome in outcomes:
        by_attack[step.ensemble, step.position].append(outcome)
    clean = by_attack[CLEAN, 0]
    results = []
    for ensemble in (None, *ensembles):
        name, attacks = (CLEAN, (CLEAN,)) if ensemble is None else (ensemble.name, _names(ensemble))
        counts = [
            _count(attack, by_attack[name, position], len(clean))
            for position, attack in enumerate(attacks)
        ]
        right = counts[-1].given - counts[-1].broken
        num = sum(len(outcome.samples) for outcome in clean)
        detail, note = (bool(ensemble.means), ensemble.note) if ensemble else (False, "")
        results.append(Robustness(name, right, num, tuple(counts), detail=detail, note=note))
    return tuple(results)


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


def robust_samples(outcomes: Iterable[tuple[Step, Outcome]], ensemble: str, num: int) -> Tensor:
    """Returns which samples are classified right and not broken by an ensemble.

    Args:
        outcomes: of any steps.
        ensemble: name.
        num: number of samples.

    Returns:
        (num,) bool; False for samples that the ensemble did not attack.
    """
    robust = torch.zeros(num, dtype=torch.bool)
    for step, outcome in sorted(outcomes, key=lambda pair: pair[0].position):
        if step.ensemble == ensemble:
            robust[outcome.samples] = ~outcome.broken
    return robust


def mean_results(
    ensembles: Sequence[Ensemble], robust: Mapping[str, Tensor]
) -> Iterator[Robustness]:
    """Yields the means over ensembles that name a common one, the widest mean last.

    The interval is that of the mean over images of each image's share of right answers: the same
    images are in all ensembles of a mean, so their outcomes are not independent.

    Args:
        ensembles: all that were run.
        robust: (N,) bool by ensemble, see `robust_samples`.
    """
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for ensemble in ensembles:
        for name in ensemble.means:
            groups[name].append(robust[ensemble.name])
    widest = max(map(len, groups.values()), default=0)
    for name, masks in sorted(groups.items(), key=lambda pair: len(pair[1])):
        right = torch.stack(masks).double()
        share, num = right.mean(dim=0), right.shape[1]
        margin = 1.96 * float(share.std()) / math.sqrt(num) if num > 1 else 1.0
        mean = float(share.mean())
        note = f"{name}: mean error {100 * (1 - mean):.1f}% over {len(masks)} sets of images"
        yield Robustness(
            name,
            int(right.sum()),
            right.numel(),
            (),
            bounds=(max(0.0, mean - margin), min(1.0, mean + margin)),
            note=note if len(masks) == widest else "",
        )


def _names(ensemble: Ensemble) -> tuple[str, ...]:
    return tuple(attack.name for attack in ensemble.attacks)
