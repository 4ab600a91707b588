"""Makes the steps of an evaluation that the ledger does not have yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from raymi.evaluation.blocks import Outcome, Schedule, Step
from raymi.evaluation.ledger import Ledger

Task = tuple[Step, Tensor]
"""A step and the samples that are left for it, (M,) int64."""


class Pool(Protocol):
    """Where steps are made: in this process, or on workers of a cluster."""

    def submit(self, task: Task) -> None:
        """Takes a step to make; returns at once."""

    def next(self) -> tuple[Step, Outcome]:
        """Waits for one of the steps that were submitted to be done, in any order."""


class InThisProcess:
    """A pool without workers: a step is made when its outcome is asked for.

    Args: perform, makes a step.
    """

    def __init__(self, perform: Callable[[Step, Tensor], tuple[Outcome, Tensor]]) -> None:
        self._perform = perform
        self._waiting: list[Task] = []

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def next(self) -> tuple[Step, Outcome]:
        step, samples = self._waiting.pop()  # depth first: a block to its end, then the next
        return step, self._perform(step, samples)[0]


def run(schedule: Schedule, ledger: Ledger, pool: Pool) -> Iterator[tuple[Step, Outcome, bool]]:
    """Brings an evaluation to its end; each outcome is in the ledger before it is yielded.

    Yields: step, its outcome, and whether it was in the ledger already.
    """
    going_on = 0
    known: list[tuple[Step, Outcome]] = []

    def begin(tasks: Iterable[Task]) -> None:
        nonlocal going_on
        for step, samples in tasks:
            outcome = ledger.outcome(step)
            # Other samples are left where a damaged block before this one was attacked again.
            if outcome is not None and torch.equal(outcome.samples, samples):
                known.append((step, outcome))
            else:
                pool.submit((step, samples))
                going_on += 1

    begin(reversed(list(schedule.first())))
    while known or going_on:
        if known:
            step, outcome = known.pop()
            begin(schedule.after(step, outcome))
            yield step, outcome, True
            continue
        step, outcome = pool.next()
        going_on -= 1
        ledger.record(step, outcome)
        begin(schedule.after(step, outcome))
        yield step, outcome, False
